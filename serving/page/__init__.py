"""The page at `/ui`: static files without a build step (`ui/`), and the rows of a run as they lie on disk."""

from serving.page.routes import add_page

__all__ = ["add_page"]
