"""The demo world: a small language, its judge, and the tiny models that the demo fuses."""
