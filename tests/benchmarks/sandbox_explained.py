"""By hand: why a reference of the MBPP+ prompts does not pass, and why a mutant that `code_mutants.py` makes of one does.

Looked at one by one. The program says which are in neither list, so nothing new goes by unseen.
"""

REFERENCES = {
    "Mbpp/83": "the data: gives chr(6), the test wants 'f'",
    "Mbpp/117": "the data: gives lists, the test wants tuples",
    "Mbpp/229": "the data: positives keep their order, the test wants another",
    "Mbpp/249": "the data: order of a set, the test wants it sorted",
    "Mbpp/295": "the data: counts 8 among its divisors, the test does not",
    "Mbpp/396": "the data: gives True, the test wants 'Valid'",
    "Mbpp/400": "the data: pairs are not sorted before they are counted",
    "Mbpp/442": "the data: not rounded to two digits",
    "Mbpp/461": "the data: counts 2 upper case letters, the test wants 1",
    "Mbpp/574": "the data: exact pi, the test has 3.1415",
    "Mbpp/582": "the data: asserts that its argument is a dict, the test gives a set",
    "Mbpp/640": "the data: takes a text, the test gives a list",
}

EQUIVALENT = {
    "Mbpp/69": "one more slice, shorter than the list that is looked for",
    "Mbpp/130": "counts by two; the greatest stays the greatest",
    "Mbpp/133": "adds zeros to the sum of negative integers",
    "Mbpp/239": "column 0 gets other values, and nothing reads it",
    "Mbpp/620": "every cell is assigned before it is read",
    "Mbpp/771": "an early end for odd lengths, which end in False anyway",
}
"""Mutants that give the same for every input."""

NOT_SEEN = {
    "Mbpp/3": "no number is tried for 2 either way",
    "Mbpp/56": "70 is neither value",
    "Mbpp/72": "5 leaves neither 2 when divided by 4 nor by 5",
    "Mbpp/77": "12345 leaves 3 when divided by 11",
    "Mbpp/79": "6 is even, and its half is not 1",
    "Mbpp/91": "some colour has it, and some has not",
    "Mbpp/100": "99 is all nines, which is answered before",
    "Mbpp/113": "neither 'python' nor 'ython' is a number",
    "Mbpp/160": "the loop comes to i = 2 before either bound",
    "Mbpp/167": "0 is answered before",
    "Mbpp/222": "both elements are of the type of all",
    "Mbpp/227": "the last argument is the least",
    "Mbpp/285": "'ac' has neither pattern",
    "Mbpp/290": "the longest list is the greatest as well",
    "Mbpp/309": "the last argument is the greatest",
    "Mbpp/406": "12 is a multiple of 2 and of 3",
    "Mbpp/415": "the pair with the greatest product has the greatest sum",
    "Mbpp/433": "some elements are above the number, and some below",
    "Mbpp/436": "there is no 0 in the list",
    "Mbpp/455": "another month is asked for",
    "Mbpp/567": "every second element of a sorted list is sorted",
    "Mbpp/576": "no part is found either way",
    "Mbpp/589": "the range does not begin below 0",
    "Mbpp/602": "the first letter comes again before the difference shows",
    "Mbpp/605": "13 has no divisor, so the line is not reached",
    "Mbpp/626": "a negative radius is answered before",
    "Mbpp/722": "weights are above the height that is asked for",
    "Mbpp/733": "the first occurrence is found before the step matters",
    "Mbpp/737": "returns its argument, which is as true as a match",
    "Mbpp/744": "some element is None, and some is not",
    "Mbpp/748": "'Python' is its own answer",
    "Mbpp/760": "all elements are the same",
    "Mbpp/762": "6 is not 4",
    "Mbpp/781": "one pair of divisors is an even number of them too",
    "Mbpp/790": "index 0 decides",
    "Mbpp/794": "returns its argument, which is as true as a match",
    "Mbpp/804": "2 is even, 3 is a multiple of 3",
}
"""Mutants that give something else for some input, but not for the one of the only test."""
