"""What node and proxy say to each other."""
