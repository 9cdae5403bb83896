"""Panels of figures: each module draws one kind of number onto the axes that it is given."""
