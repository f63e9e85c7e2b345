"""What a recipe is: a configuration, and where it comes from."""

from dataclasses import dataclass

from train.config import Config


@dataclass(frozen=True)
class Recipe:
    """A named configuration.

    Attributes:
        source: where the numbers come from: paper and section.
        reason: why they are what they are, and in what they depart from the source.
        published: error in percent that the source reports, with its conditions.
    """

    config: Config
    source: str
    reason: str
    published: str
