"""What stands around lm-eval in `unmask eval`: flags, data on disk, own questions, presets, results."""
