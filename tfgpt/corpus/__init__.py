"""Documents: where text comes from, and how it is cleaned and split."""
