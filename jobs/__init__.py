"""Entry points. May import everything; nobody imports jobs."""

import cluster  # noqa: F401 - states Ray's settings before any entry point imports Ray
