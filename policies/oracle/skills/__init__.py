"""What the hand can do, a file a skill; each decides anew at every call."""
