"""The names of the rows that stand beside the methods in every table."""

DO_NOTHING = "do nothing"
NULL = "retrain (null: retrained against retrained)"
