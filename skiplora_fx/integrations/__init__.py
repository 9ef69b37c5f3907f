"""One file for each framework that skiplora_fx plugs into."""
