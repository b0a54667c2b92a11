// The empty program that `zero health` is measured against.
