"""One training step: the network, augmentation, the optimizer, and the devices it runs on."""
