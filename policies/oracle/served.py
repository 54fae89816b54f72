"""What the expert cannot do, task by task, and why: tasks whose official state 0 it did not solve."""

MICROWAVE = "no grasp of a mug goes through the door of the microwave"
PAN = "no grasp holds the frying pan: its handle turns in the fingers"
BLOCKED = "something blocks the way of the object to its place; what, was not examined"
COMPARTMENT = "the front compartment of the caddy is too short for a book as it is held"
SHELF = "objects are lowered into their places, and a shelf is open at its side"

CANNOT: dict[str, dict[int, str]] = {
    "libero_10": {9: MICROWAVE},
    "libero_90": {
        6: "the hand does not reach the handle of the lowest drawer, near the table",
        13: BLOCKED,
        32: "a bottle that stands does not fit into a drawer",
        84: BLOCKED,
        **dict.fromkeys((18, 21, 40, 41, 42, 45), PAN),
        **dict.fromkeys((73, 78, 81), COMPARTMENT),
        **dict.fromkeys((86, 88, 89), SHELF),
    },
}
