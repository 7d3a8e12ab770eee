"""Early exits: where a model can be cut, what can be said of its answer there, and how sure one can be of that."""
