"""Everyday English words, for keys, values and lists in natural language."""

from __future__ import annotations

_ADJECTIVES = """
able amber ancient awake bare bitter blank bold brave breezy brief bright brisk broad calm careful cheap clean clear
clever close cloudy cold cool coral cozy crisp curious curly damp dark deep dense distant dry dusty eager early easy
empty equal even exact faint fair famous fancy fast final fine firm fit flat fluffy fond fresh frosty full gentle giant
glad golden grand grave gray great green grim happy hard harsh hazy heavy hollow honest huge humble humid icy idle ideal
jolly keen kind large late lavish lazy lean light little lively local lofty lonely long loose loud loyal lucky lunar
major mellow mild minor misty modern modest muddy narrow native neat noble noisy novel odd olden open oval pale patient
plain polite prime private proud pure quick quiet rapid rare ready real red rich rigid ripe robust rough round royal
rusty sandy scarlet secret sharp shiny short shy silent silver simple sleek slim slow small smooth snowy soft solar
solid sour spare stable steady steep stern still strong sturdy subtle sudden sunny super sweet swift tall tame tart
tender thick thin tidy tiny tough true urban usual vast velvet vivid warm wary wavy weary weird wet white whole wide
wild windy wise witty wooden woven young zesty
"""
_NOUNS = """
acorn actor album alley almond anchor angle ankle apple apron arch arena arrow atlas attic autumn badge bagel baker
balcony balloon bamboo banana banjo barn barrel basin basket beach beacon beaver bell bench berry bicycle bishop blanket
blossom board boat bolt bonnet border bottle bowl branch bread brick bridge broom brush bucket buckle bugle butter
button cabin cable cactus camel camera canal candle canoe canyon captain caravan carpet carrot castle cattle cave cedar
cellar cement chain chair chalk chapel cherry chess chimney chorus cinema circus citrus clay cliff clock cloud clover
coach coast cobra cocoa coffee coin collar comet compass copper cotton couch cousin cradle crane crater crayon creek
cricket crown crystal curtain cushion daisy dancer desert diary dinner doctor dolphin donkey door dragon drawer dress
drum eagle easel echo elbow ember engine envelope fabric factory falcon farmer feather fence ferry fiddle field finger
flag flame flute foam forest fossil fountain fox garden garlic gate geyser ginger giraffe glacier glove goat grape grass
gravel guitar hammer harbor harp harvest hazel hedge helmet heron hill honey hood horse hotel island ivory jacket jaguar
jar jewel jungle kayak kettle kitchen kite kitten ladder lake lamp lantern laurel lawyer leaf lemon letter lily lion
lizard lobster locket lumber magnet mango maple marble market marsh meadow melon merchant meteor mirror mitten monkey
moss mountain muffin museum napkin needle nest nickel nurse oasis ocean olive onion orchard orchid otter oven owl oyster
paddle painter palace panda paper parade parrot pasture path peach peanut pebble pencil penguin pepper piano picnic
pigeon pillow pilot pirate planet plaza pocket poem pond pony poplar poppy porch potato prairie prince puddle pumpkin
puppet quail quarry quartz queen quilt rabbit radio rain raven ribbon river robin rocket roof rope rose saddle sailor
salad salmon salt sand sandal scarf school scooter sea seal shadow shelf shell shield ship shoe shore singer skirt sky
sled snail sofa soldier soup sparrow spider spoon spruce squirrel stadium star statue steam stone storm stove
straw stream street student sugar summer sunset swan table tailor teacher temple tent theater thimble thorn thread tiger
timber toast tomato torch tower train tree trout trumpet tulip tunnel turkey turtle uncle valley vase vessel village
vine violin volcano wagon walnut walrus water weasel whale wheat wheel whistle willow window winter wizard wolf wool
yacht zebra zipper
"""
_VERBS = """
accept admire agree allow answer appear argue arrange arrive assist attend avoid bake balance become begin behave
believe belong bloom boil borrow bounce breathe bring build burn carry catch celebrate change chase cheer choose climb
collect combine compare complain consider continue cook count cover crawl create cross cry dance decide deliver depend
describe dig discover divide dream drift drink drive earn eat enjoy enter escape examine explain explore fall feed feel
fetch fill find finish float flow fly fold follow forget forgive gather give glow grow guess guide handle hang hear help
hide hold hope hover hurry imagine improve include invent invite join jump keep knit knock know laugh lead learn leave
lend lift listen live look love manage measure melt mend mix move nod notice obey observe offer order own pack paint
pause pay plan plant play polish pour praise prefer prepare promise protect pull push reach read remember repair repeat
reply rescue rest return ride ring rise roll row run sail save scatter search sell send settle sew share shine sing sit
sketch sleep slide smile speak spend spin stand start stay stir stretch study surprise sweep swim swing talk taste teach
tell thank think throw tie touch trade travel trust try turn unite use visit wait walk wander wash watch wave wear weave
welcome whisper win wonder work wrap write yawn yield
"""
ADJECTIVES = tuple(_ADJECTIVES.split())
NOUNS = tuple(_NOUNS.split())
VERBS = tuple(_VERBS.split())
