"""Passes in which a prompt is computed once for all its responses: what training and scoring have in common.

Modules: `trees` (the layout, pure), `attention` (registered with transformers), `last_mlp` (the last feed-forward block
on the tokens that are read).
"""
