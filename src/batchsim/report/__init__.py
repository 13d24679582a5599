"""A sweep as one page to explore in a browser: what is on it, put together here, and its script and style."""

from batchsim.report.page import write_page

__all__ = ["write_page"]
