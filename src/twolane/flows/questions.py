"""The questions a contract audit asks: one place for their ids, titles and wording.

Each description is a plain question for a person or a language model. The expressions in single quotes are wordings
that answers often use; the built-in extractive model looks for them as cues (`twolane.rules.ranking`), a language model
may take them as examples. They were chosen on one half of a labelled sample, and measured on the other by
`tests/load/extraction_quality.py`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Question:
    """One thing an auditor wants quoted from a contract, or wants to know is not there."""

    id: str
    """The field's name in every schema; stable."""
    title: str
    """What a person reads in a report."""
    description: str
    """The question in words, with the wordings to look for in single quotes."""


QUESTIONS: tuple[Question, ...] = (
    Question(
        "parties",
        "Parties",
        "Who are the parties? Their names stand in the opening words: 'by and between', 'is made … by and "
        "between', 'is entered into … between', 'agreement is made', 'agreement … between … and', 'principal "
        "place of business', 'hereinafter referred to as', 'referred to as the', 'each a \"party\"', 'collectively "
        "… the \"parties\"', 'parties: (1)', '(hereinafter', 'below called the', 'on the one part', 'on the other "
        "part', '(in this document the', 'between … (\"', 'on the buying side', 'have agreed what follows', "
        "'agreed what follows', 'the parties are'.",
    ),
    Question(
        "agreement_date",
        "Date of the agreement",
        "On what date was the agreement made or signed? It stands in the opening words or above the signatures: "
        "'dated as of', 'is made … as of', 'entered into as of', 'is entered into … by and between', 'made and "
        "entered into', 'agreement … made this', 'day of … by and between', 'is made on', 'is made … day of', "
        "'made the … day of', 'have executed this agreement … as of', 'agreement date', 'parties signed this', "
        "'both signed on', 'signed on the', 'signed on', 'concluded on', 'dated', 'entered into the'.",
    ),
    Question(
        "effective_date",
        "Effective date",
        "On what date does the agreement take effect? Often the opening words say it: '(the \"effective date\")', "
        "'(\"effective date\")', '\"effective date\" means', 'effective as of', 'shall be effective', 'shall become "
        "effective', 'becomes effective', 'effective date of this … is', 'effective date', 'commencement date', "
        "'entered into as of', 'takes effect on', 'comes into force on', 'enters into force', 'period begins on', "
        "'orders may be placed from', 'with effect from', 'starts on'.",
    ),
    Question(
        "term",
        "Term",
        "How long does the agreement run, and when does it expire? Look for 'term of this agreement shall', "
        "'agreement shall commence', 'shall commence on', 'shall continue … unless … terminated', 'shall remain "
        "in effect', 'shall remain in full force', 'shall continue in force', 'shall expire', 'unless sooner "
        "terminated', 'unless earlier terminated', 'unless terminated', 'term of this agreement', 'initial term "
        "is', 'initial term', 'the term of … years', 'agreement lasts', 'contract lasts', 'continues for', 'stays "
        "in force until', 'runs for a fixed period', 'fixed period of', 'remains in force', 'unless it is ended "
        "earlier'.",
    ),
    Question(
        "renewal",
        "Renewal",
        "What happens at the end of the first term: is the agreement renewed or extended? Look for 'automatically "
        "renew', 'automatically be renewed', 'be automatically renewed', 'renewed automatically', 'renew "
        "automatically', 'extend automatically', 'automatic extension', 'automatically be extended', "
        "'automatically extended', 'renew for', 'renewed for', 'renewal term', 'for successive', 'additional … "
        "periods', 'right to renew', 'option to extend', 'may be renewed', 'may be extended', 'no automatic "
        "renewal', 'may extend this', 'rolls over for', 'month to month basis', 'further period of the same', "
        "'single extension', 'tacitly'; but not 'business days'.",
    ),
    Question(
        "renewal_notice",
        "Notice against renewal",
        "How much notice must a party give to stop the renewal? Look for 'unless either party … prior', "
        "'automatically … renew … unless', 'automatically … unless … notice', 'notice of non-renewal', 'intention "
        "not to renew', 'not to renew', 'intent to terminate', 'prior to the expiration of the', 'prior to the "
        "end of the … term', 'then-current term', 'then current term', 'elects not to renew', 'before the period "
        "ends', 'wants none of this', 'days before the period', 'before the end of the period', 'before the end "
        "of the term', 'before expiry'.",
    ),
    Question(
        "governing_law",
        "Governing law",
        "Which law governs the agreement? Look for 'governed by', 'shall be governed', 'governed … laws of', "
        "'construed in accordance with the laws', 'in accordance with the laws of', 'construed … laws of', "
        "'subject to the laws of', 'conflict of laws', 'conflicts of law', 'law applies to this', 'decided under "
        "the laws', 'under the laws of … disputes', 'law governs', 'are governed by … law'.",
    ),
    Question(
        "termination_for_convenience",
        "Termination for convenience",
        "May a party terminate without a cause? Look for 'without cause', 'terminate … for convenience', 'for any "
        "reason or no reason', 'for any or no reason', 'for any reason or none', 'terminate … for any reason', "
        "'with or without cause', 'terminate this agreement at any time', 'terminate … at any time … upon', "
        "'terminate … without … reason', 'without giving a reason', 'without having to show cause', 'without "
        "giving reasons', 'may terminate … upon … days', 'may terminate … by giving … days', 'any other time upon "
        "… notice', 'cancel this agreement at any time', 'end this … at any moment', 'end this … at any time', "
        "'free to withdraw from'; but not 'material breach', 'breach', 'insolven', 'default', 'bankrupt', 'cure "
        "such', 'convenience of reference', 'if the other'.",
    ),
    Question(
        "liability_cap",
        "Limit of liability",
        "Is there a limit of what a party must pay for damages? Look for 'liability … shall not exceed', "
        "'liability … exceed', 'aggregate liability', 'total liability', 'maximum liability', 'liability … "
        "limited to', 'be liable … consequential', 'special, incidental', 'indirect … damages', 'consequential "
        "damages', 'lost profits', 'loss of profits', 'sole remedy', 'exclusive remedy', 'in no event … liable', "
        "'liable for more than', 'liable up to', 'all claims … shall not exceed', 'claims … are capped at', "
        "'capped at', 'limit of liability of', 'liability … is limited', 'sum of all claims', 'damages … end at'.",
    ),
    Question(
        "uncapped_liability",
        "Unlimited liability",
        "Which liability is excepted from the limit? Look for 'except for … in no event', 'except … liable for … "
        "consequential', 'except for breach', 'except for liability', 'except for claims', 'except in the event "
        "of', 'except in cases of gross negligence', 'except with respect to … obligations', 'cap will not "
        "apply', 'limitation … shall not apply', 'limitations … shall not apply', 'limits do not apply', 'limits "
        "… not apply to', 'nothing in this … limits liability', 'nothing … limit … liability', 'nothing … exclude "
        "… liability', 'except … indemnification obligations', 'no cap or exclusion covers', 'unlimited remains', "
        "'is without limit', 'unlimited liability', 'liability … unlimited', 'death or personal injury', 'other "
        "than … indemnif … liable'.",
    ),
    Question(
        "liquidated_damages",
        "Liquidated damages",
        "What fixed sum is owed for breach, delay or early termination? Look for 'liquidated damages', 'agreed "
        "damages', 'early termination fee', 'termination fee', 'as a penalty', 'not a penalty', 'penalty of', "
        "'contractual penalty', 'service credit', 'a fixed sum of', 'for every week', 'for each week', 'for each "
        "day of', 'per week begun', 'per working day', 'percent … per week', 'cancellation fee', 'misses an "
        "agreed date'.",
    ),
    Question(
        "insurance",
        "Insurance",
        "What insurance must a party carry? Look for 'liability insurance', 'insurance … limits', 'shall maintain "
        "… insurance', 'maintain … insurance', 'maintains … insurance', 'insurance coverage', 'insurance polic', "
        "'per occurrence', 'additional insured', 'certificate of insurance', 'certificates of insurance', "
        "'commercial general liability', 'compensation insurance', 'a liability policy', 'sum insured', 'carries "
        "liability cover', 'reputable insurer', 'shall be insured against', 'at its own expense … insurance'.",
    ),
    Question(
        "audit_rights",
        "Audit rights",
        "Who may inspect books, records or premises? Look for 'right to audit', 'to audit', 'may audit', 'audit … "
        "records', 'inspect … records', 'to inspect', 'examine … books', 'books and records', 'books of the', "
        "'during normal business hours', 'during regular business hours', 'shall permit … inspect', 'independent "
        "… accountant', 'such audit', 'access to … records', 'reasonable times', 'have the accounts … checked', "
        "'records and premises', 'opens its files', 'examine its'.",
    ),
    Question(
        "assignment",
        "Assignment",
        "May a party assign the agreement or its rights, and with whose consent? Look for 'may not assign', "
        "'shall not assign', 'not be assigned', 'may assign', 'neither party … assign', 'assign this agreement', "
        "'freely assign', 'assign … without the prior written consent', 'assigned … without', 'assigned only "
        "with', 'assignment by the', 'rights or obligations hereunder', 'neither this agreement nor', 'not "
        "assignable', 'attempted assignment', 'transfer or assign', 'assign or transfer', 'a transfer of this', "
        "'pass on its rights'.",
    ),
    Question(
        "change_of_control",
        "Change of control",
        "What follows if a party is sold, merges or changes hands? Look for 'change of control', 'change in "
        "control', 'merger or consolidation', 'merges with', 'merger … assign', 'sale of all or substantially "
        "all', 'consolidation', 'terminate … change of control', 'voting power', 'all of its assets … terminate', "
        "'acquired more than half', 'shares or votes', 'change in the ownership', 'acquisition of the … by "
        "another', 'by merger', 'gains control', 'passes to new owners', 'majority of its shares'; but not "
        "'\"change of control\" means'.",
    ),
    Question(
        "exclusivity",
        "Exclusivity",
        "Does a party bind itself to deal with the other alone? Look for 'sole and exclusive right', 'exclusive "
        "right', 'exclusive distributor', 'on an exclusive basis', 'appoints … exclusive', 'grants … exclusive', "
        "'shall be exclusive', 'as the exclusive', 'an exclusive', 'the exclusive', 'exclusively from', 'solely "
        "from', 'exclusivity', 'not an exclusive', 'no exclusivity', 'only from', 'buys … only', 'from no one "
        "else', 'turn to others'; but not 'non-exclusive', 'nonexclusive', 'exclusive jurisdiction', 'exclusive "
        "remedy', 'exclusive property', 'exclusive owner', 'exclusive agreement', 'whereas', 'desires'.",
    ),
    Question(
        "ip_ownership",
        "Ownership of results",
        "Who owns what is created, and who assigns rights in it to whom? Look for 'hereby assigns', 'assigns to', "
        "'agrees to assign', 'work made for hire', 'works made for hire', 'assign … right, title and interest', "
        "'assigns … right, title and interest', 'transfers and assigns', 'execute … assign', 'shall vest in', "
        "'shall be the sole and exclusive property', 'become the property of', 'shall be owned by', 'shall own "
        "all', 'retains ownership', 'vests in the', 'all intellectual property in', 'all rights in the product', "
        "'rights in them belong', 'belong to the', 'work results', 'work product', 'stay with the', 'no right in "
        "the'.",
    ),
    Question(
        "price_changes",
        "Changes of price",
        "May prices be raised or lowered, and within which bounds? Look for 'increase … price', 'price increase', "
        "'prices … increase', 'increase … fees', 'adjust … prices', 'price adjustment', 'any increase', 'an "
        "increase of up to', 'increase … percent', 'increase … per cent', 'consumer price index', 'index of', "
        "'prices are fixed', 'remain fixed', 'remains fixed', 'fixed for the', 'raise its prices', 'rates "
        "follow', 'revise the', 'new price list', 'prices … firm'.",
    ),
    Question(
        "payment_terms",
        "Terms of payment",
        "When and how are invoices paid? Look for 'within … days … invoice', 'days after receipt of … invoice', "
        "'days from … invoice', 'receipt of the invoice', 'receipt of a proper invoice', 'invoices fall due', "
        "'period for payment', 'payment is due', 'net 30', 'payable within', 'due and payable', 'payment shall be "
        "made', 'payments shall be made', 'shall pay … within', 'pays by bank transfer', 'shall pay each', "
        "'undisputed invoice', 'late payment', 'payment terms'.",
    ),
    Question(
        "warranty",
        "Warranty",
        "What is warranted about the goods or services, and for how long? Look for 'warranty period', 'free from "
        "defects', 'defects in material', 'material and workmanship', 'warrants … for a period of', 'warrants "
        "for', 'warrants … months', 'warrants … years', 'warranty … months', 'warranty … years', 'warranty … "
        "days', 'product warranty', 'limited warranty', 'prove faulty', 'stands by the goods', 'replaced free of "
        "charge', 'corrects every defect'; but not 'no warranties', 'disclaim', 'makes no'.",
    ),
    Question(
        "minimum_commitment",
        "Minimum commitment",
        "What least quantity or sum must a party buy, sell or pay? Look for 'minimum purchase', 'minimum annual', "
        "'annual minimum', 'a minimum of', 'minimum quantit', 'minimum order', 'minimum commitment', 'minimum "
        "amount', 'minimum … payment', 'minimum royalt', 'the minimum', 'shall purchase … at least', 'orders at "
        "least', 'not less than … units', 'minimum guarantee', 'minimum number', 'guarantees no volume', "
        "'guarantee … volume', 'takes at least', 'undertakes to buy', 'obliged to order any', 'obligated to "
        "purchase'; but not 'insurance', 'coverage', 'for a minimum of', 'at minimum', 'minimum number of "
        "shares'.",
    ),
    Question(
        "confidentiality",
        "Confidentiality",
        "How must confidential information be kept, and for how long? Look for 'shall keep … confidential', 'keep "
        "… confidential', 'hold in confidence', 'in strict confidence', 'shall not be disclosed', 'shall not "
        "disclose', 'not to disclose', 'confidential information shall', 'maintain the confidentiality', "
        "'confidential information', 'receiving party', 'non-disclosure', 'treat each other's secrets', "
        "'secrets', 'marked confidential', 'neither party reveals', 'this duty continues', 'remain so until'.",
    ),
)
