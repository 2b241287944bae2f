"""The verbs over everything below: load, transform, check, compile, build, run, compare. ``driver.py`` is the page to read first."""
