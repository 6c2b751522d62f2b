"""The command line of fastadam: a thin shell over the library. Parse, call one function, print."""
