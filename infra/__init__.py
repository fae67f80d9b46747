"""What every job needs and no job is about: schemas, storage, recipes, tracking, the command line."""
