"""A dry run: any competition notebook or script executed as if it stood on Kaggle, and what Kaggle would have said."""
