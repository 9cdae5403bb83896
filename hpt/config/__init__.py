"""What a run is: typed settings, the rules between them, and the recipes they are read from."""
