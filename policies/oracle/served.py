"""What the expert cannot do, task by task, and why."""

MICROWAVE = "no grasp of a mug goes through the door of the microwave"

CANNOT: dict[str, dict[int, str]] = {"libero_10": {9: MICROWAVE}}
