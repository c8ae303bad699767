"""What a laptop adds to the emission: the command line, profiles, the check of anyone's archive, users' files."""
