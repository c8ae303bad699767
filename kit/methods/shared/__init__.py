"""What methods share: changes of weights, schedules, losses, loaders, mixtures."""
