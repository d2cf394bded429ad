"""One file per revision, named by its number. Revisions only add: see ``schema.upgrade``."""
