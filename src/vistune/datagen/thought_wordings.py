"""The template teacher's questions that need a thought, and its words about the sizes of things. Notation: `grammar.py`."""

from __future__ import annotations

from vistune.datagen.grammar import Wording

THOUGHT_WORDINGS: dict[str, Wording] = {
    # --- what if ---
    "remaining": Wording(
        (
            "[if|suppose|imagine] {gone} {were} [taken away|removed|erased]{here}: how many [objects|things] would [be left|remain]",
            "how many [objects|things] would [be left|remain]{here} without {gone}",
            "if somebody [erased|painted over|cut out] {gone}, how many [objects|things] would [still be there|be left]",
            "not counting {gone}, how many [objects|things] [are there|do you see]{here}",
            "leaving out {gone}, how many [objects|things] are [there|left]{here}",
        ),
        ("how many [objects|things] would [be left|remain]{here} without {gone}",
            "how many [objects|things] [are there|you see]{here} if {gone} {do} not count"),
        ("count the [objects|things]{here} without {gone}", "count everything{here} but {gone}"),
    ),
    "added": Wording(
        (
            "if {n} more {plural} were [added|put into the picture|drawn], how many {plural_all} would there be[ in all|]",
            "suppose {n} more {plural} [joined|came into the picture]: how many {plural_all} would [there be|you count]",
            "how many {plural_all} would there be[ in all|] if {n} more {plural} were [added|drawn]",
            "with {n} more {plural}, how many {plural_all} would the picture [show|have]",
        ),
        ("how many {plural_all} there would be if {n} more {plural} were added",
            "how many {plural_all} the picture would show with {n} more {plural}"),
    ),
    "mirrored": Wording(
        (
            "if the picture were mirrored [left to right|as in a mirror, left for right], where would {the} be",
            "imagine [this|the] picture in a mirror, left and right exchanged: where would {the} be",
            "where would {the} be if left and right were exchanged",
            "if you exchanged left and right{here}, where would {the} [end up|be found]",
        ),
        ("where {the} would be if left and right were exchanged", "where {the} would be in a mirror image with left and right exchanged"),
        ("exchange left and right in your mind and say where {the} would be",),
    ),
    "turned": Wording(
        (
            "if the picture were [turned|rotated] upside down, by half a turn, where would {the} be",
            "where would {the} be after [turning|rotating] the picture by 180 degrees",
            "suppose I [hold|turn] the picture upside down, by half a turn: where would {the} be then",
            "after half a turn of the whole picture, where would {the} [end up|be found]",
        ),
        ("where {the} would be if the picture were turned by 180 degrees", "where {the} would be after half a turn of the picture"),
        ("turn the picture by half a turn in your mind and say where {the} would be",),
    ),
    "swapped": Wording(
        (
            "if {one} and {other} [traded|swapped|exchanged] places, what would be {place}",
            "suppose {one} and {other} [trade|swap|exchange] places: what is {place} then",
            "what would be {place} if {one} and {other} [traded|swapped|exchanged] places",
            "imagine that {one} moves to where {other} is, and the other way round. What is {place} then?",
        ),
        ("what would be {place} if {one} and {other} [traded|swapped|exchanged] places",),
        ("exchange {one} and {other} in your mind and say what is {place}",),
    ),
    "covered": Wording(
        (
            "if the {side} half of the picture were [covered|hidden|cut off], [what|which objects] would you still see",
            "suppose I [cover|hide] the {side} half with my hand: what can still be seen",
            "what [stays|remains] in view if the {side} half of the picture is [covered|hidden]",
            "with the {side} half of the picture [covered|hidden], what is left to see",
        ),
        ("what would still be seen if the {side} half of the picture were [covered|hidden]",
            "which [objects|things] remain if the {side} half is cut off"),
        ("cover the {side} half in your mind and name what is left",),
    ),
    "same_colour": Wording(
        (
            "do {one} and {other} have the same color", "are {one} and {other} of the same color",
            "is the color of {one_them} the same as the color of {other_them}", "do the colors of {one_them} and {other_them} match",
            "are {one} and {other} painted alike in color", "would one pot of paint do for both {one_them} and {other_them}",
        ),
        ("whether {one} and {other} have the same color", "if the colors of {one_them} and {other_them} match"),
        ("compare the colors of {one_them} and {other_them}: are they the same",),
    ),
    "between": Wording(
        (
            "what is between {one_them} and {other_them}", "which [object|thing] is between {one_them} and {other_them}",
            "what do you pass on the way from {one_them} to {other_them}", "what separates {one_them} from {other_them}",
            "what stands in the middle, between {one_them} and {other_them}",
        ),
        ("what is between {one_them} and {other_them}", "which [object|thing] is between {one_them} and {other_them}"),
        ("name what is between {one_them} and {other_them}",),
    ),
    # --- sizes and distances ---
    "size_most": Wording(
        (
            "which [object|thing] [is|appears] {most}{here}", "what is the {most_adjective} [object|thing]{here}",
            "which of the [objects|things] [is|appears] {most}{here}", "[what|which object] would you call the {most_adjective}{here}",
            "comparing their sizes in the picture, which [object|thing] is {most}",
            "if you [sort|order] the [objects|things] by [size|how large they appear], which is {most}",
        ),
        ("which [object|thing] [is|appears] {most}{here}", "which of the [objects|things] is {most}"),
        ("name the {most_adjective} [object|thing]{here}", "find the {most_adjective} [object|thing]{here}"),
    ),
    "size_which": Wording(
        (
            "which [is|appears] {more}{here}, {one} or {other}", "[what|which] [takes up|covers|fills] {more_room}{here}, {one} or {other}",
            "{one} or {other}: which [is|appears] {more}{here}", "of {one_them} and {other_them}, which [is|appears] {more}{here}",
            "which of the two [is|appears] {more}{here}, {one} or {other}",
        ),
        ("which [is|appears] {more}{here}, {one} or {other}", "whether {one} or {other} [is|appears] {more}{here}",
            "which of {one_them} and {other_them} [is|appears] {more}{here}"),
        ("compare {one_them} and {other_them}: which [is|appears] {more}",),
    ),
    "size_is": Wording(
        (
            "{be} {one} {more} than {other}{here}", "{does} {one} [appear|look] {more} than {other}{here}",
            "is it right that {one} [takes|take] up {more_room} than {other}{here}",
            "{does} {one} [cover|fill|take up] {more_room} than {other}{here}",
        ),
        ("whether {one} {be} {more} than {other}{here}", "if {one} {be} {more} than {other} in the picture"),
        ("compare {one_them} and {other_them}: is the first {more}", "check whether {one} {be} {more} than {other}{here}"),
    ),
    "nearest_centre": Wording(
        (
            "which [object|thing] is {nearest} the [center|middle] of the picture", "what is {nearest} the [center|middle] of the picture",
            "if you put a finger on the very [center|middle] of the picture, which [object|thing] is {nearest} it",
            "measured from the [center|middle] of the picture, which [object|thing] is {nearest_alone}",
        ),
        ("which [object|thing] is {nearest} the [center|middle] of the picture", "what is {nearest} the [center|middle] of the picture"),
        ("name the [object|thing] {nearest} the [center|middle] of the picture",),
    ),
    "nearest": Wording(
        (
            "which [object|thing] is {nearest} {other_them}{here}", "what is {nearest} {other_them}{here}",
            "starting at {other_them}, which [object|thing] is {nearest_alone}",
            "which of the other [objects|things] is {nearest} {other_them}",
        ),
        ("which [object|thing] is {nearest} {other_them}{here}", "what is {nearest} {other_them}"),
        ("name the [object|thing] {nearest} {other_them}",),
    ),
    "in_order": Wording(
        (
            "in which order do the [objects|things] come, from {direction}", "what is the order of the [objects|things] from {direction}",
            "going from {direction}, in which order do you [meet|see] the [objects|things]{here}",
            "reading the picture from {direction}, what comes first, and what after that",
        ),
        ("in which order the [objects|things] come from {direction}", "what the order of the [objects|things] is from {direction}"),
        ("name the [objects|things]{here} from {direction}", "list the [objects|things] in their order from {direction}",
            "sort the [objects|things] by their place, from {direction}"),
    ),
    "middle_empty": Wording(
        (
            "is the [middle|center] of the picture empty", "is there nothing in the [middle|center] of the picture",
            "is the [middle|center] of the picture free of [objects|things]",
            "would there be room for one more [object|thing] right in the [middle|center] of the picture",
        ),
        ("whether the [middle|center] of the picture is empty", "if there is nothing in the [middle|center] of the picture"),
        ("check whether the [middle|center] of the picture is empty",),
    ),
}  # fmt: skip
