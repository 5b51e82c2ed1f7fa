"""Training: the state, the train step, the loop and its reports."""
