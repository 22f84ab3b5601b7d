"""One module per subcommand, from checked options to output."""
