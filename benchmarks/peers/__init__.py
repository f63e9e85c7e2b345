"""What people would use instead, each in its best honest setting: one file for each peer."""
