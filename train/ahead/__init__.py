"""What a TPU's compiler makes of a run's steps, before there is a TPU."""
