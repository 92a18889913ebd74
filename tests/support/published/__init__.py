"""The rules of published methods, written out anew from their authors' code for one sample."""
