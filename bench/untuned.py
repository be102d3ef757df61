"""One recipe on five generators of reasoning-gym that it was not tuned on: before and after.

The five were written down here before any of them was run with the recipe, which was developed on
others. letter_counting and spell_backward did not move with the demo's settings.
"""

GENERATORS = ("letter_counting", "spell_backward", "chain_sum", "gcd", "number_sorting")
