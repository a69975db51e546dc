"""The words and sentence patterns of the built-in English grammar (`grammar.py`). `{name}` is a slot."""

TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.replace("\n", " ").split(","))


ONES = _list(
    "zero, one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen, fourteen, fifteen,"
    " sixteen, seventeen, eighteen, nineteen"
)
ORDINALS = (
    "",
    *_list(
        "first, second, third, fourth, fifth, sixth, seventh, eighth, ninth, tenth, eleventh, twelfth, thirteenth,"
        " fourteenth, fifteenth, sixteenth, seventeenth, eighteenth, nineteenth"
    ),
)

BEFORE_HOUR = _list("half past, a quarter past, a quarter to, ten to, twenty past, five past")

SLOTS = {
    "room": _list(
        "kitchen, bedroom, bathroom, garage, office, hall, garden, attic, cellar, living room, dining room, nursery"
    ),
    "device": _list(
        "light, lamp, heater, fan, radio, television, oven, alarm, computer, printer, speaker, camera, washing machine"
    ),
    "opening": _list("door, window, gate, curtain, blind, drawer, box, cupboard, roof"),
    "app": _list("calendar, music, weather, map, camera, mail, clock, news, settings, browser, notes, album"),
    "media": _list("song, album, movie, video, podcast, book, story, game, show, concert"),
    "genre": _list("jazz, rock, classical music, blues, folk music, piano music, soul, dance music, opera"),
    "month": _list("january, february, march, april, may, june, july, august, september, october, november, december"),
    "day": _list("monday, tuesday, wednesday, thursday, friday, saturday, sunday"),
    "when": _list(
        "today, tomorrow, tonight, yesterday, this morning, this evening, next week, last year, on {day}, now,"
        " soon, later, at noon, at midnight, every day, in {month}, next month, after lunch, before dinner"
    ),
    "future": _list(
        "today, tomorrow, tonight, this afternoon, next week, on {day}, soon, later, in an hour, next {day}"
    ),
    "past": _list(
        "yesterday, last night, last week, last {day}, this morning, an hour ago, {count} years ago, in {month}"
    ),
    "unit": _list("minutes, hours, days, seconds, weeks, months, years"),
    "person": _list(
        "john, mary, anna, peter, david, sarah, michael, emma, thomas, laura, james, julia, robert, helen,"
        " george, alice, paul, susan, mark, linda, daniel, karen, kevin, nancy, brian, lucy, henry, grace, oliver,"
        " sophie, martin, rachel"
    ),
    "relative": _list(
        "mother, father, brother, sister, uncle, aunt, son, daughter, cousin, wife, husband, grandmother, friend,"
        " neighbor, teacher, doctor, boss, lawyer"
    ),
    "who": _list("{person}, {person}, my {relative}, your {relative}, the {job}, her {relative}, his {relative}"),
    "job": _list(
        "doctor, nurse, driver, farmer, teacher, student, pilot, baker, painter, singer, writer, judge, soldier,"
        " captain, engineer, waiter, police officer, manager, plumber, dentist, actor"
    ),
    "city": _list(
        "london, paris, boston, chicago, dallas, denver, berlin, madrid, rome, vienna, dublin, tokyo, moscow,"
        " sydney, toronto, new york, oxford, seattle, houston, lisbon, cairo, oslo, prague, geneva"
    ),
    "country": _list(
        "france, germany, spain, italy, england, scotland, japan, china, india, canada, mexico, egypt, greece, brazil"
    ),
    "place": _list(
        "station, airport, hotel, hospital, school, library, market, museum, park, beach, church, bank,"
        " restaurant, office, bridge, river, village, theater, garage, bakery, pharmacy, stadium, castle, harbor"
    ),
    "adjective": _list(
        "big, small, old, new, young, beautiful, quiet, loud, heavy, strong, warm, cold, clean, dirty, empty,"
        " full, cheap, expensive, dark, bright, long, short, strange, wonderful, broken, soft, wide, narrow, deep,"
        " dry, wet, famous"
    ),
    "feeling": _list(
        "happy, sad, tired, angry, hungry, thirsty, ready, busy, late, sick, afraid, sorry, proud, lucky, bored,"
        " nervous, wrong, right"
    ),
    "color": _list("red, blue, green, yellow, black, white, brown, orange, purple, gray, pink, silver, golden"),
    "animal": _list(
        "dog, cat, horse, cow, sheep, bird, fish, mouse, rabbit, lion, tiger, bear, wolf, fox, duck, goat,"
        " monkey, snake, chicken, elephant"
    ),
    "thing": _list(
        "book, table, chair, phone, key, bottle, cup, plate, knife, bag, coat, shirt, shoe, hat, ring, watch,"
        " picture, letter, paper, pencil, basket, blanket, pillow, mirror, candle, ticket, umbrella, hammer,"
        " ladder, bicycle, guitar, violin, wallet, newspaper"
    ),
    "food": _list(
        "bread, butter, cheese, milk, coffee, tea, water, juice, sugar, salt, rice, soup, meat, chicken, fish,"
        " cake, chocolate, honey, fruit, salad, pasta, ice cream, potatoes, apples, eggs, onions, tomatoes,"
        " carrots, bananas, oranges, lemons, grapes"
    ),
    "vehicle": _list("car, bus, train, plane, boat, ship, truck, taxi, bicycle, helicopter"),
    "weather": _list("rain, snow, wind, fog, storm, thunder, sunshine, ice, clouds"),
    "sky": _list("sunny, cloudy, rainy, windy, foggy, stormy, cold, hot, warm, freezing"),
    "verb": _list(
        "see, find, buy, sell, take, bring, carry, clean, paint, wash, fix, open, close, throw, hold, keep, lose,"
        " move, use, want, need, like, break, hide, lift, borrow, send"
    ),
    "done": _list(
        "saw, found, bought, sold, took, brought, carried, cleaned, painted, washed, fixed, opened, threw, kept,"
        " lost, moved, wanted, needed, liked, broke, dropped, stole, forgot"
    ),
    "move": _list("walk, run, drive, go, travel, ride, return, come, fly, hurry"),
    "moved": _list("walked, ran, drove, went, traveled, rode, returned, came, hurried"),
    "doing": _list(
        "sleeping, eating, reading, writing, working, singing, dancing, cooking, swimming, playing, waiting,"
        " talking, laughing, crying, listening, running, walking, shopping, studying, fishing"
    ),
    "subject": _list("i, you, we, they"),
    "third": _list("he, she, it, {person}"),
    "object": _list("me, him, her, us, them, {person}"),
    "owner": _list("my, your, his, her, our, their"),
    "where": _list(
        "at home, outside, upstairs, downstairs, here, there, in the {room}, in {city}, at the {place}, near the"
        " {place}, under the table, behind the {place}, on the left, on the right, in the middle"
    ),
    "how": _list(
        "quickly, slowly, quietly, carefully, again, together, alone, early, always, often, never, sometimes, very well"
    ),
    "quantity": _list("{count}, some, many, a few, more, enough, no, several, too many"),
    "plural": _list(
        "books, chairs, keys, bottles, cups, plates, bags, shirts, shoes, letters, pictures, tickets, horses,"
        " dogs, cats, birds, trees, flowers, houses, people, children, questions, ideas, mistakes, stars,"
        " mountains, rivers, windows, doors, stones"
    ),
    "measure": _list(
        "dollars, miles, meters, pounds, degrees, people, points, pages, feet, euros, percent, kilometers"
    ),
    "amount": _list("cups of {food}, bottles of {food}, pounds of {food}, boxes of {food}, kilos of {food}"),
    "command": _list(
        "stop, go, wait, start, yes, no, up, down, left, right, on, off, play, pause, next, back, cancel, repeat,"
        " help, forward, backward, faster, slower, louder, softer, undo, delete, save, continue, finish, again,"
        " okay"
    ),
    "spelling": _list(
        "alpha, bravo, charlie, delta, echo, foxtrot, golf, hotel, india, kilo, lima, oscar, sierra, tango,"
        " victor, zulu"
    ),
    "direction": _list("north, south, east, west, left, right, forward, straight"),
    "language": _list("english, french, german, spanish, italian, russian, chinese, japanese"),
    "subject_matter": _list(
        "history, science, music, art, sports, politics, money, love, nature, war, peace, travel, cooking"
    ),
}

TEMPLATES = {
    "commands": _list(
        "turn on the {room} {device}, turn off the {room} {device}, turn off the {device} in the {room}, switch"
        " on the {device}, switch off the {device} {future}, please turn on the {device}, open the {opening},"
        " close the {opening} please, close the {room} {opening}, open the {app}, set the {device} to {percent}"
        " percent, set a timer for {small} {unit}, set an alarm for {time}, wake me up at {time}, remind me to"
        " call {who} {future}, call {who}, call {who} at {time}, send a message to {who}, play some {genre}, play"
        " the next {media}, play {genre} in the {room}, stop the {media}, turn the volume up, turn the volume"
        " down, make it {percent} percent brighter, show me the {app}, find a {place} near me, take me to the"
        " {place}, navigate to {city}, turn {direction} at the {place}, go {direction} for {number} meters, read"
        " my messages, add {food} to the list, add {food} and {food} to the list, order {count} {amount}, book a"
        " table for {count} at {time}, book a {vehicle} to {city}, lock the {room} {opening}, cancel the {media},"
        " start the {device} at {time}, lower the temperature to {small} degrees, delete the last message,"
        " {command}, {command} {command}, repeat the last {media}, search for {adjective} {plural}, paint the"
        " {thing} {color}, put the {thing} in the {room}, bring me the {color} {thing}, give {object} the {thing}"
    ),
    "numbers": _list(
        "{digits}, {digits}, {digits}, {digits}, {code}, {number}, {number}, {number} {measure}, it costs"
        " {number} {measure}, my number is {digits}, the code is {code}, room {number}, page {number}, flight"
        " {letter_digits}, {letter_digits}, {count} plus {count} is {small}, {small} minus {count}, {count} times"
        " {count}, {percent} percent, dial {digits}, chapter {small}, the {ordinal} of {count}, platform {count},"
        " the answer is {number}, bus number {small}, number {count}, about {number} {measure}, {number} {measure}"
        " to {city}"
    ),
    "dates": _list(
        "{date}, {date} {year}, in {year}, on {date}, {day} the {ordinal}, it was {year}, the meeting is on"
        " {date}, {who} was born in {year}, see you on {day}, from {day} to {day}, until {month} {year}, the"
        " {ordinal} week of {month}, born on {date}, since {month}, we met in {year}, {day} at {time}, every {day}"
        " in {month}, the summer of {year}, the winter of {year}, my birthday is {date}"
    ),
    "times": _list(
        "at {time}, it is {time}, {time}, {time}, from {time} to {time}, the {vehicle} leaves at {time}, the"
        " {place} opens at {time}, the {place} closes at {time}, meet me at {time}, wait {small} {unit}, {small}"
        " {unit} ago, in {small} {unit}, the {media} starts at {time}, come back in {count} {unit}, {day} morning"
        " at {time}, it took {small} {unit}, what time is it, what time does the {vehicle} leave"
    ),
    "everyday": _list(
        "how are you, i am {feeling}, i'm {feeling}, are you {feeling}, good morning {person}, good night"
        " {person}, good evening, thank you very much, thank you {person}, you are welcome, see you {future}, i"
        " don't know, i can't {verb} it, what's your name, my name is {person}, where is the {place}, where are"
        " you from, i live in {city}, {who} lives in {country}, do you speak {language}, i don't understand, could"
        " you help {object}, excuse me where is the {place}, how much is the {thing}, how many {plural} do you"
        " have, i would like some {food}, can i have the {food} please, the {food} is {adjective}, is there any"
        " {food}, we need {quantity} {plural}, what do you think about {subject_matter}, let's talk about"
        " {subject_matter}, let's go to the {place}, i'll {move} to {city} {future}, we'll see {object} {future},"
        " don't forget the {thing}, that's {adjective}, it's very {sky} {when}, it is {sky} in {city}, will there"
        " be {weather} {future}, there was {weather} in {city} {past}, who is that, why not, of course, what"
        " happened {past}, nothing happened, please sit down, come in, be careful, happy birthday {person}, nice"
        " to meet you, have a nice day, good luck {person}, he's {doing}, she's {doing} {where}"
    ),
    "stories": _list(
        "the {adjective} {animal} is {doing} {where}, the {color} {animal} {moved} to the {place}, {who} {done} a"
        " {adjective} {thing}, {who} {done} the {color} {thing} {past}, {who} is {feeling}, {who} was {feeling}"
        " {past}, {who} is {doing} {where}, {subject} {done} {quantity} {plural}, {subject} {verb} the {thing},"
        " {subject} {move} to the {place} {how}, {third} {moved} to {city} by {vehicle}, {third} {done} {owner}"
        " {thing}, {owner} {thing} is {color}, {owner} {relative} is a {job}, {owner} {thing} is {where}, the"
        " {job} {done} the {thing}, a {job} from {country}, there are {quantity} {plural} {where}, the {thing} is"
        " {where}, a {adjective} {thing} and a {color} {thing}, the {animal} and the {animal} are {doing},"
        " {person} and {person} are {doing}, {subject} will {verb} {owner} {thing} {future}, did you {verb} the"
        " {thing}, have you seen {owner} {thing}, {who} speaks {language} {how}, do not {verb} the {plural},"
        " {third} {done} {food} and {food}, the {vehicle} to {city} is {adjective}, the {place} is {adjective} and"
        " {adjective}, the {weather} was {adjective} {past}, {subject} {moved} {direction} for {number} miles,"
        " {subject} were {doing} {past}, {who} {done} {number} {measure}, {who} works at the {place}, {plural} are"
        " {adjective}, {quantity} {adjective} {plural}"
    ),
}

# How often each group of patterns is drawn, relative to the others.
WEIGHTS = {"commands": 5, "numbers": 5, "dates": 2, "times": 2, "everyday": 4, "stories": 6}
