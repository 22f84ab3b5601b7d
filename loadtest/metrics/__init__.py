"""From records to figures. Pure: no connection, no file but those that are compared."""
