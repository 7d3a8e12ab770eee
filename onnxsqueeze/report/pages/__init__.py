"""Reports as pages for the browser."""
