"""Configurations: the options, what a resumed run may change, and the recipes."""

from train.config.config import OF_ONE_START as OF_ONE_START
from train.config.config import Config as Config
from train.config.config import check_resumable as check_resumable
from train.config.config import computed_fields as computed_fields
from train.config.config import flag as flag
from train.config.config import unused_fields as unused_fields
from train.config.fields import DATASETS as DATASETS
from train.config.fields import FIRST_PROFILED as FIRST_PROFILED
from train.config.fields import FOLDER as FOLDER
from train.config.fields import LAST_PROFILED as LAST_PROFILED
from train.config.fields import MOST_STEPS as MOST_STEPS
from train.config.fields import is_streamed as is_streamed
