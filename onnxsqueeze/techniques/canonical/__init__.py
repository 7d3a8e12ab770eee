"""The same computation in a form that is faster or smaller."""
