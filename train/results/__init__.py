"""What runs reached: tables over their seeds, curves, and the table of published errors."""
