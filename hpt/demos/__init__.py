"""Small tasks that the shipped recipes prepare by themselves: a model and questions."""
