"""What both wings must agree on, byte for byte."""
