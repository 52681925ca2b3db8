"""Training: learner, loss, precision, devices."""
