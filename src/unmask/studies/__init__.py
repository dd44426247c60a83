"""The parts of `unmask study`: what is laid out, its text, one run, and what came of all of them."""
