"""The stages of a search, in the order of `selfspec_tune.search.run`."""
