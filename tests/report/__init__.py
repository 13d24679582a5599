"""Tests of the report page, in the browser that reads it."""
