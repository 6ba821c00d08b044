"""`peers`: warm scores beside other servers of features and of models."""
