"""The template teacher's ways to ask, one entry for each thing that can be asked.

Notation: `grammar.py`. `{here}` is nothing or words like " in the picture"; `{the}` what is asked about ("the dog", "the red dog on the
left", "it"), `{them}` the same behind a verb, `{is}`, `{does}` and `{is_there}` agree with it. No wording of the suite `scenes-v1` that is
held out from training is in here; `tests/datagen/test_template_teacher.py` watches that.
"""

from __future__ import annotations

from vistune.datagen.grammar import Wording

WORDINGS: dict[str, Wording] = {
    # --- one thing ---
    "what_at": Wording(
        (
            "[what|which object|which thing] is {place}", "what [can|do] you see {place}", "what can be [seen|found|made out] {place}",
            "what [is shown|is located|is placed|appears|has been put] {place}", "which [object|thing] do you [see|find] {place}",
            "{place}, what is [there|shown|to be seen]", "what would I find {place}", "what is the [object|thing] {place}[ called|]",
            "can you name the [object|thing] {place}", "what is it that I see {place}",
        ),
        (
            "what is {place}", "what can be [seen|found] {place}", "which [object|thing] is {place}", "what you see {place}",
            "what is shown {place}", "what the [object|thing] {place} is",
        ),
        (
            "name [the object|the thing|what is] {place}", "say what is {place}", "name what you see {place}",
            "identify the object {place}",
            "give me the name of the [object|thing] {place}", "look {place} and name the object there",
        ),
    ),
    "what_alone": Wording(
        (
            "what [is shown|can be seen|can you see|do you see]{here}", "what is the only [object|thing] in the picture",
            "what [object|thing] is this",
            "which [object|thing] [is shown|can be seen]{here}", "what does the [picture|image] show",
            "what is this a [picture|drawing] of",
        ),
        ("what is shown{here}", "which [object|thing] [is shown|can be seen]{here}", "what this is a picture of", "what you see{here}"),
        ("name the only [object|thing] in the picture", "say what is shown{here}", "name what you see"),
    ),
    "where": Wording(
        (
            "where{here} {is} {the}", "where [can|could|do] I [find|see|spot|look for] {them}{here}", "where {does} {the} appear{here}",
            "whereabouts{here} {is} {the}", "in what [area|part|spot] of the picture {is} {the}", "what is the position of {them}{here}",
            "which part of the picture {is} {the} in", "where would you [place|put|locate] {them}{here}", "where exactly {is} {the}{here}",
            "where {is} {the} [located|placed|shown|positioned]{here}", "where [can|may] {the} be [seen|found]{here}",
        ),
        (
            "where {the} {is}{here}", "where I can [find|see] {them}{here}", "where {the} can be [seen|found|spotted]{here}",
            "in what part of the picture {the} {is}", "where exactly {the} {is}",
        ),
        (
            "locate {them}{here}", "give [me |]the position of {them}{here}", "describe where {the} {is}{here}",
            "point out where {the} {is}",
            "say where {the} {is}{here}", "say in what part of the picture {the} {is}",
        ),
    ),
    "where_choice": Wording(
        (
            "{is} {the} {place_1} or {place_2}", "which is [right|it|true]: {is} {the} {place_1} or {place_2}",
            "{is} {the} rather {place_1} or {place_2}",
            "do I [find|see] {them} {place_1} or {place_2}", "should I look for {them} {place_1} or {place_2}",
        ),
        ("whether {the} {is} {place_1} or {place_2}", "if {the} {is} {place_1} or {place_2}"),
        ("decide whether {the} {is} {place_1} or {place_2}", "choose the right place of {them}: {place_1} or {place_2}"),
    ),
    "is_at": Wording(
        (
            "{is} {the} {place}", "{does} {the} appear {place}", "can {the} be [seen|found] {place}", "do you [see|find] {them} {place}",
            "{is} {the} [located|shown|positioned] {place}", "would it be [right|correct] to look for {them} {place}",
            "do I have to look {place} to find {them}",
        ),
        ("whether {the} {is} {place}", "whether {the} can be [seen|found] {place}", "if {the} {is} [located |shown |]{place}"),
        ("check whether {the} {is} {place}", "say whether {the} {is} {place}", "find out whether {the} can be seen {place}"),
    ),
    "colour": Wording(
        (
            "[what|which] color {is} {the}{here}", "what is the color of {them}", "[what|which] color {does} {the} have{here}",
            "what color [did|has] the [artist|painter] [give|given] {them}", "in [what|which] color {is} {the} [shown|drawn]{here}",
            "how would you name the color of {them}", "what is the [main|right] word for the color of {them}",
            "what color do you see on {them}",
            "which color [best |]describes {them}",
        ),
        ("[what|which] color {the} {is}{here}", "[what|which] color {the} {has}", "in what color {the} {is} [shown|drawn]{here}"),
        ("name the color of {them}", "say [what|which] color {the} {is}", "give the color of {them}", "state the color of {them}{here}"),
    ),
    "is_colour": Wording(
        (
            "{is} {the} {colour}", "{is} {the} {colour} in color", "{does} {the} [look|appear] {colour}[ to you|]",
            "{does} {the} have a {colour} color",
            "is {colour} the color of {them}", "is the color of {them} {colour}", "{is} {the} [shown|drawn] in {colour}{here}",
            "am I right that {the} {is} {colour}",
        ),
        ("whether {the} {is} {colour}", "if {the} {is} {colour}[ in color|]", "whether the color of {them} is {colour}"),
        ("check whether {the} {is} {colour}", "say whether {the} {is} {colour}"),
    ),
    "colour_choice": Wording(
        (
            "{is} {the} {colour_1} or {colour_2}", "which color {is} {the}, {colour_1} or {colour_2}",
            "{does} {the} look [more |]{colour_1} or {colour_2}",
            "{colour_1} or {colour_2}: which is the color of {them}", "is the color of {them} {colour_1} or {colour_2}",
        ),
        ("whether {the} {is} {colour_1} or {colour_2}", "if {the} {is} {colour_1} or {colour_2}"),
        ("choose the color of {them}: {colour_1} or {colour_2}", "decide whether {the} {is} {colour_1} or {colour_2}"),
    ),
    # --- existence and number ---
    "exists": Wording(
        (
            "{is_there} {any}{here}", "can [you|one|I] see {a}{here}", "do you see {a}{here}",
            "does [the picture|this image|the scene] [show|contain|include|have] {a}",
            "{is} {a} [shown|pictured|depicted|present]{here}", "{is} {a} among the [objects|things]{here}",
            "can {a} be [seen|found|spotted]{here}",
            "{is_there} {any} [anywhere|to be seen|somewhere]{here}", "did the artist [draw|include] {a}{here}", "could I find {a}{here}",
            "is one of the [objects|things] {a}",
        ),
        (
            "whether {there_is} {any}{here}", "whether {a} can be [seen|found]{here}", "whether the [picture|image] [shows|contains] {a}",
            "if {there_is} {any}{here}", "whether you see {a}{here}", "if you can see {a}{here}",
        ),
        ("check whether {there_is} {any}{here}", "say whether [you see|you can see|there {is}] {a}{here}",
            "find out whether the picture shows {a}"),
    ),
    "exists_the": Wording(
        (
            "is {a} in [the|this] [picture|image|scene]", "can [you|one|I] see {a}{here}", "do you see {a}{here}",
            "does [the picture|this image] [show|contain|include] {a}",
            "is {a} [shown|pictured|depicted|present]{here}", "is {a} among the [objects|things]{here}", "can {a} be [seen|found]{here}",
        ),
        ("whether {a} is in [the|this] picture", "whether {a} can be [seen|found]{here}", "whether the picture shows {a}",
            "if you see {a}{here}"),
        ("check whether {a} is in the picture", "say whether you see {a}{here}", "find out whether the picture shows {a}"),
    ),
    "exists_at": Wording(
        (
            "{is_there} {any} {place}", "do you see {a} {place}", "can {a} be [seen|found] {place}", "{is} the [object|thing] {place} {a}",
            "does the [picture|image] show {a} {place}", "is what I see {place} {a}",
        ),
        ("whether {there_is} {any} {place}", "whether the [object|thing] {place} is {a}", "if {a} can be seen {place}"),
        ("check whether {there_is} {any} {place}", "say whether the [object|thing] {place} is {a}"),
    ),
    "how_many": Wording(
        (
            "how many {objects} [are there|are shown|can be seen|can you see|do you see|do you count|can you count|can you find]{here}",
            "how many {objects} does the [picture|image|scene] [show|contain|have]",
            "what is the [total |]number of {objects} [shown|you see]{here}",
            "how many {objects} are [visible|present]{here}", "counting everything, how many {objects} [are there|do you see]{here}",
            "what number of {objects} can be seen{here}",
        ),
        (
            "how many {objects} [there are|are shown|can be seen|you see|you count|you can find]{here}",
            "how many {objects} the [picture|image|scene] [shows|contains|has]",
        ),
        (
            "count the {objects}{here}", "count all {objects} [you see|you can find]{here}", "give the number of {objects} you see{here}",
            "say how many {objects} there are{here}", "count how many {objects} are shown{here}",
        ),
    ),
    "how_many_of": Wording(
        (
            "how many {plural} [are there|are shown|can be seen|can you see|do you see|do you count|can you count|can you find]{here}",
            "how many {plural} does the [picture|image|scene] [show|contain|have]",
            "what is the [total |]number of {plural} [shown|you see]{here}",
            "how many {plural} are [visible|present]{here}", "how many of the [objects|things]{here} are {plural}",
            "what number of {plural} can be seen{here}",
        ),
        (
            "how many {plural} [there are|are shown|can be seen|you see|you count|you can find]{here}",
            "how many {plural} the [picture|image|scene] [shows|contains|has]", "how many of the [objects|things]{here} are {plural}",
        ),
        (
            "count the {plural}{here}", "count all {plural} [you see|you can find]{here}", "give the number of {plural} you see{here}",
            "say how many {plural} there are{here}", "count how many {plural} are shown{here}",
        ),
    ),
    "how_many_together": Wording(
        (
            "how many {plural_1} and {plural_2} are there [in total|in all|together]{here}",
            "how many [objects|things]{here} are {plural_1} or {plural_2}",
            "if you count both {plural_1} and {plural_2}, how many [are there|do you get]",
            "taken together, how many {plural_1} and {plural_2} [are there|do you see]{here}",
            "what is the number of {plural_1} and {plural_2} [together|in total]",
        ),
        ("how many {plural_1} and {plural_2} there are [in total|in all|together]{here}",
            "how many of the [objects|things]{here} are {plural_1} or {plural_2}"),
        ("count the {plural_1} and the {plural_2} together", "add up the {plural_1} and the {plural_2}{here}"),
    ),
    "count_is": Wording(
        (
            "are there {bound} {n} {objects_n}{here}", "do you [see|count] {bound} {n} {objects_n}{here}",
            "does the [picture|image|scene] [show|contain] {bound} {n} {objects_n}",
            "can [you|one] [see|count|find] {bound} {n} {objects_n}{here}", "is the number of {objects}{here} {bound_2} {n}",
        ),
        ("whether there are {bound} {n} {objects_n}{here}", "if the picture shows {bound} {n} {objects_n}",
            "whether you count {bound} {n} {objects_n}{here}"),
        ("check whether there are {bound} {n} {objects_n}{here}", "say whether you see {bound} {n} {objects_n}{here}"),
    ),
    "more_than_other": Wording(
        (
            "are there more {plural_1} than {plural_2}{here}", "do you [see|count] more {plural_1} than {plural_2}{here}",
            "do the {plural_1} outnumber the {plural_2}{here}",
            "is the number of {plural_1} larger than the number of {plural_2}{here}",
            "does the [picture|image] show more {plural_1} than {plural_2}",
        ),
        ("whether there are more {plural_1} than {plural_2}{here}", "if the {plural_1} outnumber the {plural_2}{here}"),
        ("check whether there are more {plural_1} than {plural_2}{here}", "say whether the {plural_1} outnumber the {plural_2}"),
    ),
    "which_repeats": Wording(
        (
            "which [object|thing|name] [appears|occurs|is shown|can be seen] more than once{here}",
            "[which|what] [kind of object|thing] is there more than one of{here}",
            "what can be seen [more than once|several times]{here}", "which [object|thing] is repeated{here}",
        ),
        ("which [object|thing] [appears|occurs|is shown] more than once{here}", "what can be seen several times{here}",
            "which [object|thing] is repeated{here}"),
        ("name the [object|thing] that [appears|occurs|is shown] more than once{here}", "find the [object|thing] that is repeated{here}"),
    ),
    "any_repeats": Wording(
        (
            "does any [object|thing] appear more than once{here}", "is any [object|thing] shown more than once{here}",
            "is anything shown more than once{here}", "are there two or more of the same [object|thing]{here}",
            "do you see the same kind of [object|thing] [twice|more than once]{here}", "is [any|some] [object|thing] repeated{here}",
        ),
        ("whether [any|some] object [appears|occurs|is shown] more than once{here}", "if anything is repeated{here}",
            "whether the same kind of [object|thing] is there more than once{here}"),
        ("check whether any [object|thing] is shown more than once{here}", "say whether anything is repeated{here}"),
    ),
    "is_only": Wording(
        (
            "{is} {the} the only [object|thing]{here}", "{is} {the} all [there is|that can be seen]{here}", "{is} {the} all alone{here}",
            "is there nothing else than {them}{here}", "does the [picture|image] show only {them}",
        ),
        ("whether {the} {is} the only [object|thing]{here}", "if there is nothing else than {them}{here}",
            "whether {the} {is} all there is{here}"),
        ("check whether {the} {is} the only [object|thing]{here}",),
    ),
    "what_else": Wording(
        (
            "what else [is there|is shown|can be seen|do you see|can you see]{here}[ besides {them}|, apart from {them}]",
            "besides {them}, what [else |][is there|is shown|do you see]{here}",
            "apart from {them}, what [is shown|can be seen|can you find]{here}",
            "which other [objects|things] [are there|can be seen|do you see]{here} besides {them}", "what keeps {them} company{here}",
        ),
        ("what else [is there|is shown|you see]{here} besides {them}", "what [there is|is shown] apart from {them}{here}"),
        ("name everything [but|except] {them}", "name the [objects|things]{here}, apart from {them}",
            "list what [is there|you see] besides {them}"),
    ),
    "list": Wording(
        (
            "which [objects|things] [are there|are shown|can be seen|do you see|can you find]{here}",
            "what [objects|things] does the [picture|image|scene] [show|contain]",
            "what are the [objects|things]{here}", "can you [name|list] [all|the] [objects|things]{here}", "what [all |]can be seen{here}",
        ),
        ("which [objects|things] [are there|are shown|you see|can be seen]{here}", "what the [objects|things]{here} are",
            "what [objects|things] the picture shows"),
        ("name [all|all the|the] [objects|things]{here}", "list [all|all the|the] [objects|things]{here}",
            "list everything [you see|that is shown]{here}", "make a list of the [objects|things]{here}",
            "enumerate the [objects|things]{here}"),
    ),
    # --- one thing and another ---
    "is_beyond": Wording(
        (
            "is {one} {beyond} {other}", "would you find {one_them} {beyond} {other_them}", "does {one} [appear|lie] {beyond} {other}",
            "can {one} be [seen|found] {beyond} {other}",
            "is it {one} that is {beyond} {other}", "compared with {other_them}, is {one} {more}",
            "is {one} [placed|located|shown] {beyond} {other}{here}",
        ),
        ("whether {one} is {beyond} {other}", "if {one} [appears|lies] {beyond} {other}",
            "whether {one} is [placed|shown] {beyond} {other}"),
        ("check whether {one} is {beyond} {other}", "say whether {one} is {beyond} {other}",
            "compare {one_them} and {other_them}: is the first {more}"),
    ),
    "which_beyond": Wording(
        (
            "[which|which one|what] is {more}{here}, {one} or {other}", "of {one_them} and {other_them}, which is {more}{here}",
            "{one} or {other}: which [one |]is {more}{here}",
            "which of the two is {more}{here}: {one} or {other}", "between {one_them} and {other_them}, which [one |]is {more}{here}",
            "which [lies|appears] {more}{here}, {one} or {other}",
        ),
        ("which is {more}{here}, {one} or {other}", "whether {one} or {other} is {more}{here}",
            "which of {one_them} and {other_them} is {more}{here}"),
        ("name the one that is {more}: {one} or {other}", "choose the one that is {more}{here}: {one} or {other}"),
    ),
    "what_beyond": Wording(
        (
            "what is {beyond} {other}{here}", "which [objects|things] are {beyond} {other}{here}",
            "what [can|do] you [see|find] {beyond} {other}{here}",
            "is anything {beyond} {other}, and if so, what", "which [objects|things] can be [seen|found] {beyond} {other}",
            "what [lies|appears] {beyond} {other}{here}",
        ),
        ("what is {beyond} {other}{here}", "which [objects|things] are {beyond} {other}", "what can be [seen|found] {beyond} {other}"),
        ("name everything {beyond} {other}", "list [what is|all that is|the objects] {beyond} {other}{here}"),
    ),
    "how_many_beyond": Wording(
        (
            "how many [objects|things] are {beyond} {other}{here}",
            "how many [objects|things] [do|can] you [see|find|count] {beyond} {other}",
            "how many [objects|things] [lie|appear|can be seen] {beyond} {other}{here}",
            "what number of [objects|things] is {beyond} {other}",
        ),
        ("how many [objects|things] are {beyond} {other}{here}", "how many [objects|things] can be seen {beyond} {other}"),
        ("count the [objects|things] {beyond} {other}", "say how many [objects|things] are {beyond} {other}{here}"),
    ),
    "relation": Wording(
        (
            "where is {one} [relative to|as seen from|in relation to] {other_them}", "seen from {other_them}, where is {one}",
            "how does the position of {one_them} compare with that of {other_them}",
            "on which side of {other_them} is {one}", "in which direction from {other_them} is {one}",
            "how are {one} and {other} placed relative to each other",
            "going from {other_them} to {one_them}, in which direction do I move",
        ),
        ("where {one} is [relative to|as seen from|in relation to] {other_them}", "in which direction from {other_them} {one} is",
            "on which side of {other_them} {one} is"),
        ("describe the position of {one_them} relative to {other_them}", "say where {one} is as seen from {other_them}"),
    ),
    "which_most": Wording(
        (
            "which [object|thing] is {most}{here}", "what is {most}{here}", "what [object|thing] [do|can] you see {most}{here}",
            "which of the [objects|things] is {most}{here}",
            "what [lies|appears|can be found] {most}{here}", "which [object|thing] would you call the one {most}",
        ),
        ("which [object|thing] is {most}{here}", "what is {most}{here}", "which of the [objects|things] is {most}"),
        ("name the [object|thing] [that is |]{most}{here}", "find the [object|thing] {most}{here}", "say which [object|thing] is {most}"),
    ),
    "how_many_at": Wording(
        (
            "how many [objects|things] are {region}", "how many [objects|things] [do|can] you [see|count|find] {region}",
            "what number of [objects|things] is {region}",
            "{region}, how many [objects|things] are there",
        ),
        ("how many [objects|things] [are|there are|can be seen] {region}",),
        ("count the [objects|things] {region}", "say how many [objects|things] are {region}"),
    ),
    "what_corner": Wording(
        (
            "what is in the corners{here}", "which [objects|things] are in a corner{here}",
            "which [objects|things] [sit|lie|can be found] in [a corner|the corners]{here}",
            "is anything in a corner{here}, and if so, what",
        ),
        ("which [objects|things] are in a corner{here}", "what is in the corners{here}"),
        ("name [what is|everything|the objects] in the corners{here}", "list the [objects|things] that are in a corner{here}"),
    ),
    # --- the ground ---
    "background": Wording(
        (
            "[what|which] color is the background{here}", "what is the color of the background",
            "[what|which] color does the background have", "what is the background color{here}",
            "on [what|which] color [are the objects|is everything] [shown|placed]", "which color [fills|covers] the background{here}",
            "what color [was chosen|did the artist choose] for the background",
            "what color is behind the [objects|things]{here}",
        ),
        ("[what|which] color the background is{here}", "what the background color is", "[what|which] color the background has"),
        ("name the color of the background{here}", "say [what|which] color the background is", "give the background color"),
    ),
    "is_background": Wording(
        ("is the background {colour}{here}", "is {colour} the color of the background{here}", "does the background look {colour}",
            "is it a {colour} background that I see{here}", "are the objects shown on {colour_ground}"),
        ("whether the background is {colour}{here}", "if the background is {colour}", "whether the background looks {colour}"),
        ("check whether the background is {colour}", "say whether the background is {colour}{here}"),
    ),
    "pattern": Wording(
        (
            "what pattern does the background have", "what pattern is on the background{here}", "how is the background patterned{here}",
            "which pattern [covers|fills|decorates] the background{here}",
            "is the background striped, checkered, dotted or speckled", "what kind of pattern do you see [in|on] the background",
        ),
        ("what pattern the background has", "which pattern the background has{here}", "how the background is patterned"),
        ("name the pattern of the background{here}", "describe the pattern of the background in a word"),
    ),
    "is_pattern": Wording(
        ("is the background {pattern}{here}", "does the background look {pattern}", "is it a {pattern} background{here}",
            "does the background have a {pattern} look", "are the objects on {pattern_ground}"),
        ("whether the background is {pattern}{here}", "if the background is {pattern}", "whether it is a {pattern} background"),
        ("check whether the background is {pattern}", "say whether the background is {pattern}{here}"),
    ),
    # --- statements and choices ---
    "true_false": Wording(
        (
            "true or false: {statement}.", "{statement}. [True or false|Is this true or false|Would you say true or false]?",
            "is this statement true or false: {statement}.",
            "decide: is it true or false that {statement}?",
        ),
        ("whether it is true or false that {statement}",),
        ("say whether this is true or false: {statement}", "[judge|check] this statement, true or false: {statement}"),
    ),
    "is_right": Wording(
        (
            "is it [true|right|correct] that {statement}", "somebody [says|claims] that {statement}. Is that [true|right|correct]?",
            "am I [right|correct] that {statement}",
            "I think that {statement}. [Am I right|Is that so|Do you agree]?",
            "would it be [right|correct|true] to say that {statement}",
            "check this [claim|sentence]: {statement}. Is it [right|true|correct]?", "would you agree that {statement}",
        ),
        ("whether it is [true|right|correct] that {statement}", "if it is [true|right|correct] that {statement}", "whether {statement}"),
        ("check whether {statement}", "say whether it is [true|right|correct] that {statement}"),
    ),
    "which_of_these": Wording(
        (
            "which of these [can be seen|is shown]{here}: {options}", "what [is shown|can be seen|do you see]{here}: {options}",
            "is it {options} that [is shown|can be seen]{here}",
            "{options}: which of them [can be seen|is shown]{here}", "only one of these is in the picture. Which one: {options}?",
        ),
        ("which of these [is shown|can be seen]{here}: {options}",),
        ("choose what [is shown|can be seen]{here}: {options}", "pick what you see{here}: {options}"),
    ),
    "letter_what": Wording(("what is {place}", "which [object|thing] is {place}", "what can be seen {place}",
        "which answer names the [object|thing] {place}", "what do you see {place}")),
    "letter_where": Wording(("where is {the}", "where in the picture is {the}", "which answer tells where {the} is",
        "where can {the} be [seen|found]{here}", "what is the right place of {the}")),
    "letter_which": Wording(("which of these [can be seen|is shown]{here}", "what [is shown|can be seen]{here}",
        "which of the following is part of the [picture|scene]", "one of these is in the picture. Which one?")),
    "letter_how_many": Wording(("how many {objects} are there{here}", "how many {objects} [do|can] you see{here}",
        "what is the number of {objects} shown{here}", "which answer gives the number of {objects}{here}")),
    # --- whole picture ---
    "describe": Wording(
        (
            "what [is|can be seen|is shown]{here}, and where", "what does the [picture|image] look like",
            "how would you describe the [picture|image|scene]", "can you describe [the|this] [picture|image|scene]",
            "what is [shown|going on]{here}, and where", "how is the [picture|scene] arranged",
            "what would you tell someone who cannot see [the|this] [picture|image]",
        ),
        ("what is shown{here} and where", "how the [picture|scene] is arranged", "what you see{here} and where"),
        (
            "describe [the|this] [picture|image|scene]", "describe what you see{here} and where it is",
            "describe the [picture|image|scene] for someone who cannot see it", "write a sentence that describes the [picture|image]",
            "say what is shown{here} and where", "give a full description of [the|this] [picture|image]",
            "sum up the [picture|image|scene] in a sentence",
        ),
    ),
    # --- thought ---
    "where_all": Wording(
        ("where are the {n} {plural}{here}", "where [can|could] I [find|see] the {n} {plural}{here}",
            "where are the {plural} [placed|located]{here}", "at which places do you see the {plural}{here}",
            "how are the {n} {plural} placed{here}"),
        ("where the {n} {plural} are{here}", "at which places the {plural} are{here}"),
        ("[locate|find] the {n} {plural}{here}", "say where the {n} {plural} are"),
    ),
}  # fmt: skip

FOLLOW_UPS: dict[str, Wording] = {
    "where_are_they": Wording(("where are they[, then|]", "and where are they", "where do you see them", "whereabouts are they{here}",
        "can you say where they are", "where can I find them")),
    "other_one_where": Wording(("and where is the other one", "where is the other one", "what about the other one: where is it",
        "and the other {name}, where is it", "where can I find the other one", "there is another one, where")),
    "other_one_colour": Wording(("and what color is the other one", "what color is the other one", "what about the color of the other one",
        "and the other {name}, what color is it", "which color does the other one have")),
    "what_instead": Wording(("what is there instead", "what do you see instead", "then what is shown{here}",
        "what [objects|things] are there, then", "so what does the picture show", "what can be seen, then")),
    "how_many_that": Wording(("how many [objects|things] is that[ in total| in all|]", "so how many [objects|things] are there",
        "how many are that together", "and how many [objects|things] does that make", "what is their number")),
    "which_of_them": Wording(("which of them is {most}", "and which of them is {most}", "which one of them is {most}",
        "of all these, which is {most}", "what is {most} among them")),
    "and_place": Wording(("and {place}", "and what is {place}", "what about {place}", "how about {place}", "and what can be seen {place}",
        "now look {place}: what is there")),
    "where_it": Wording(("and where", "where is it", "and where {is} {the}", "where, exactly", "can you say where",
        "where {is} {the}, then")),
    "anything_else": Wording(("what else", "and what else", "what else is there{here}", "what else can be seen{here}",
        "and besides that, what do you see", "what more is there to see{here}")),
}  # fmt: skip
