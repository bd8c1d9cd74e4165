"""Writes the example contracts and what a careful reader would find in them.

    python examples/make_contracts.py [FOLDER]

FOLDER (by default the one of this file) receives `contracts/`, 24 made-up procurement contracts, and `gold.json`:
per file whether it belongs into quarantine, its kind, the passage that answers each question (null: not in the
contract), and the rules of `policy.toml` it breaks. All names are invented.

Nothing is drawn by chance: a contract takes the variant of each clause that its number points at, so the bytes are
the same on every machine and with every Python. A gold passage is marked where the clause is written
(`<payment_terms>…</>`), so text and gold can't drift apart. Standard library only; the PDFs are written by hand,
uncompressed, because compressed bytes differ between versions of zlib.
"""

import json
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from hashlib import sha256
from pathlib import Path

QUESTIONS = (
    "parties agreement_date effective_date term renewal renewal_notice governing_law termination_for_convenience "
    "liability_cap uncapped_liability liquidated_damages insurance audit_rights assignment change_of_control "
    "exclusivity ip_ownership price_changes payment_terms warranty minimum_commitment confidentiality"
).split()

# ---------------------------------------------------------------------------------------------- the clause bank
#
# `== id | heading; heading` opens a clause; an indented line goes on with the one before. `* ` begins a variant,
# `! name: ` one used only when asked for by name. ` // ` parts paragraphs. `<question,question>…</>` marks what
# answers a question. In braces: C, S the roles (Cc, Ss at the start of a sentence, Cn, Sn the bare names), A the
# agreement, and the contract's values.

BANK = """
== preamble |
* <agreement_date,parties>{Aa} is made on {date} between {cust_full} ("{Cn}") and {supp_full} ("{Sn}").</>
* <agreement_date>Dated {date}.</> // <parties>PARTIES: (1) {cust_full}, referred to as {C}; and (2)
  {supp_full}, referred to as {S}.</>
* <parties>{cust_full} (hereinafter {C}) and {supp_full} (hereinafter {S}) have agreed what follows.</> //
  <agreement_date>Both signed on {date}.</>
* Date of signature and parties // <agreement_date>The parties signed {A} on {date}.</> <parties>On the buying
  side stands {cust_full}, below called {C}; on the selling side stands {supp_full}, below called {S}.</>
* <parties>Between {cust_full} - {C} - on the one part and {supp_full} - {S} - on the other part.</> //
  <agreement_date>Concluded on {date}.</>
* <agreement_date,parties>On {date}, {cust_full} (in this document {C}) and {supp_full} (in this document {S})
  entered into the {Ag} set out below.</>
! undated: <parties>{Aa} is made between {cust_full} ("{Cn}") and {supp_full} ("{Sn}") and binds them from the
  moment both have signed.</>

== recital_goods |
* {Cc} needs {subject} for its daily work and has invited offers. {Ss} makes or trades in such goods and its
  offer was the most convincing of those received.
* {Ss} has sold {subject} for many years. {Cc} wishes to buy them on terms that both sides can rely on.
== recital_services |
* {Cc} wishes to place {subject} in capable hands and chose {S} after a tender in which quality counted as much
  as price.
* {Ss} has the people, the tools and the permits for {subject}. {Cc} relies on that statement.
== recital_software |
* {Cc} looked for {subject} which its staff can use without long training. {Ss} has developed such a product and
  maintains it.
* The parties tested {subject} together over several weeks. {Cc} was satisfied with the result and wishes to use
  the product in its business.
== recital_framework |
* {Cc} will from time to time need {subject}. The parties wish to settle the terms once, so that each call-off
  needs one page only.
* Several sites of {C} use {subject}. {Aa} brings their orders under one roof.
== recital_consulting |
* {Cc} faces a decision for which it needs {subject}. {Ss} advises on such questions and has no interest in the
  outcome.
* {Ss} has proposed a method for {subject}, dated shortly before {A}. {Cc} accepted the proposal subject to the
  terms below.

== definitions | Definitions; Meaning of Words; Interpretation; Terms Used
* In {A}, "Business Day" means a day on which banks are open at the seat of {C}. "Order" means a written request
  by {C} that refers to {A}. "Charges" means the sums payable under {A}, without tax.
* "Order" is any purchase order that {C} places under {A}. "Site" is each place named in an Order. "Charges" are
  the prices in the offer of {S}, net of tax. Headings help the reader and have no legal effect.
* Words in capitals have the meaning given where they first appear. "Month" is a calendar month. "Writing"
  includes e-mail, but not a message on a telephone.
* Capitalised words mean the following: "Charges", all sums that {C} owes for performance; "Defect", any
  departure from the agreed description; "Group", a party together with the companies it controls.
! auto: "Charges" means the fees set out in the offer of {S}, net of tax. "Authorised User" means an employee of
  {C} who has been given an account. <renewal,renewal_notice>"Term" means the Initial Term and each Renewal
  Term, a Renewal Term being a further period equal to the Initial Term which begins automatically unless {C}
  has given notice to the contrary at least {rnotice} before the end of the period then running.</> "Support
  Hours" means eight in the morning to six in the evening on a Business Day.

== scope_goods | Goods and Delivery; What Is Sold; Supply; Subject of the Sale
* {Ss} shall sell and {C} shall buy {subject} in the quantities and to the description in each Order. //
  Delivery is made to the Site named in the Order, unloaded, packed so that it survives the journey. A delivery
  note with the Order number lies in every parcel. // Risk and title pass when {C} has signed for the goods.
  {Cc} inspects the goods within ten working days and reports visible damage without delay.
* The subject of {A} is the supply of {subject}. {Ss} confirms every Order within two days; an Order not refused
  in that time is accepted. // Goods travel at the risk of {S} until they are unloaded at the Site. Title passes
  on payment. // Samples handed over before {A} was signed show the least quality that {C} may expect.
* {Ss} delivers {subject} as ordered. Part deliveries need the agreement of {C}. // Where goods don't match the
  Order, {C} may send them back at the cost of {S}; this leaves the other rights of {C} untouched.
== scope_services | Services; What {S} Does; Scope of Work; The Services
* {Ss} shall provide {subject} with the care of a good member of its trade, with trained staff and with its own
  equipment. // {Ss} names a contact person who can be reached on every Business Day and who attends a review
  with {C} each quarter. // Staff of {S} follow the house rules of the Sites and carry a badge.
* {Ss} performs {subject} as described in its offer. What the offer doesn't mention but the result plainly needs
  is included. // {Ss} may use subcontractors whom {C} has approved, and answers for them as for its own staff.
  // {Ss} keeps a log of the work done, which {C} signs monthly.
* {Cc} entrusts {S} with {subject}. The hours of attendance are agreed for each Site. // If {C} is unhappy with
  a member of staff for good reason, {S} replaces that person within five working days.
== scope_software | Licence and Access; The Software; Use of the Product; Grant of Use
* {Ss} grants {C} the right to use {subject} for its own business and that of its Group, for the number of users
  in the Order. // {Ss} keeps the product available for 99.5% of each month, measured without announced
  maintenance. If it fails to do so, {C} may deduct a service credit of 2% of the monthly fee for each full hour
  lost. // {Cc} shall not copy the product except for backup and shall not remove notices from it.
* {Cc} may install and use {subject} at its Sites. New versions are part of the fee. // {Ss} answers a report of
  a fault that stops work within four hours, any other report by the next Business Day. // On the last day of
  the contract {S} hands {C} its data in a common open format and deletes what remains.
* Under {A}, {C} receives access to {subject} over the internet. {Ss} hosts the product in two data centres of
  which neither is in a flood plain. // Personal data is processed on the instructions of {C} only, as set out
  in a separate data processing agreement.
== scope_framework | Framework and Call-Offs; Orders; Scope of the Framework; How Orders Are Placed
* {Aa} sets the terms for all Orders of {subject} by {C} and its Group. Each Order is a contract of its own and
  incorporates these terms. // {Ss} confirms an Order within three working days. Terms printed on either party's
  forms have no effect.
* {Cc} may call off {subject} by written Order. An Order states the item, the quantity, the Site and the date
  wanted. // If an Order contradicts {A}, {A} prevails, unless the Order says in so many words that it departs
  from a named clause.
* For the supply of {subject} the parties agree these framework terms. Sites of {C} order on their own account.
  // {Ss} reports each quarter, by Site, what was ordered, delivered and returned.
== scope_consulting | Engagement; The Assignment; Advice and Deliverables; Scope of Advice
* {Cc} engages {S} for {subject}. The deliverables are an interim paper, a final report and one presentation to
  the management of {C}. // {Ss} performs the work through the persons named in its proposal; a replacement
  needs equal experience. // {Cc} provides the documents and the interviews that the work needs.
* {Ss} shall provide {C} with {subject} and shall deliver its findings in writing. Findings state their sources,
  and an opinion is marked as such. // {Ss} declares that it has no client whose interests conflict with the
  engagement and tells {C} at once should that change.
* The engagement covers {subject}. {Ss} works independently and is not an employee of {C}. // A deliverable is
  accepted when {C} says so in writing, or when it has raised no objection within fifteen working days of
  receiving it.

== term | Term; Duration; Commencement and Term; How Long This Lasts; Period
* <effective_date,term>{Aa} takes effect on {effective} and continues for {term}.</>
* <effective_date>The effective date of {A} is {effective}.</> <term>It runs for a fixed period of {term} from
  that date and then ends without notice.</>
* <term>{Aa} lasts {term}, unless it is ended earlier under its own terms.</> <effective_date>The period begins
  on {effective}.</>
* <effective_date>Performance starts on {effective}, which is the first day of {A}.</> // <term>The agreed
  duration is {term} counted from the first day.</>
* <effective_date>{Aa} comes into force on {effective}, whatever the date of the last signature.</> <term>The
  Initial Term is {term}.</>
! open: <effective_date>Orders may be placed from {effective}.</> <term>{Aa} stays in force until all deliveries
  have been made and paid for.</>

== renewal | Renewal; Extension; Option to Extend; What Happens at the End
* <renewal>{Cc} may extend {A} once, for up to {renewlen}, on unchanged terms.</> <renewal_notice>To do so it
  writes to {S} at least {rnotice} before the period ends.</>
* <renewal>{Aa} does not renew automatically; an extension needs a document signed by both parties.</>
* <renewal>At the end of the period the parties may agree in writing on a further {renewlen}.</>
  <renewal_notice>A party that wishes to do so tells the other no later than {rnotice} before the last day.</>
* <renewal>There is no automatic renewal.</> If {C} goes on using the performance after the last day, that is no
  extension either.
* <renewal,renewal_notice>{Cc} has the option of a single extension on the same terms, exercised by notice given
  not less than {rnotice} before expiry.</>
! auto: <renewal>At the end of each period {A} rolls over for a further period of the same length, of its own
  accord and as often as need be.</> <renewal_notice>A party that wants none of this says so in writing
  {rnotice} before the period ends.</>
! auto2: <renewal,renewal_notice>On expiry {A} shall be renewed automatically for successive periods of equal
  length, unless either party objects in writing at least {rnotice} beforehand.</>

== exit | Termination for Convenience; Ending Without Cause; Early Exit; Right to Leave; Termination by {C}
* <termination_for_convenience>{Cc} may terminate {A} for convenience, in whole or in part, by giving {exit}
  written notice.</> It then pays for what was properly performed until the last day.
* <termination_for_convenience>{Cc} may end {A} at any moment without giving a reason, on {exit} notice in writing.</>
* <termination_for_convenience>Either party may terminate {A} without cause by notice of at least {exit}.</> No
  compensation is due for the remaining period.
* <termination_for_convenience>{Cc} is free to withdraw from {A} for any reason or none; the withdrawal takes
  effect {exit} after {S} has received it.</> Prepaid sums are refunded in proportion.
* // <termination_for_convenience>Without having to show cause, {C} can bring {A} to an end if it tells {S}
  {exit} in advance.</>

== cause | Termination for Cause; Serious Breach; Default; Ending for Good Reason
* A party may end {A} at once if the other commits a material breach and has not cured it within thirty (30)
  days of a written warning, or if it becomes insolvent.
* If one party seriously breaks {A}, the other may set a deadline of no less than 20 days and, when that has
  passed in vain, terminate with immediate effect.
* Termination for good cause remains possible at all times. Insolvency, loss of a permit and repeated late
  performance count as good cause.
* Either side may terminate forthwith if the other is in material default and does not put things right within
  four weeks of being asked to. Rights that arose before the end survive it.

== price | Prices; Charges; Fees; Remuneration
* The prices are those in the offer of {S}. They are net of value added tax and include packing, travel and
  every other expense.
* {Cc} pays the Charges set out in the price list attached to the offer. Nothing else is owed, and nothing is
  charged for quotations.
* Charges follow the rates of the offer. Extra work is paid only where {C} ordered it in writing before it began.
* The remuneration is agreed in each Order on the basis of the rates in the offer, tax being added at the rate
  in force.

== price_changes | Price Adjustment; Changes to Prices; Indexation; Price Stability
* <price_changes>Prices are fixed for the whole term.</>
* <price_changes>Once in each year {S} may raise its prices in line with the consumer price index, but by no
  more than {rise}.</> It shows the calculation with its announcement.
* <price_changes>Any increase needs a written announcement with reasons and shall not exceed {rise} in any
  contract year.</>
* <price_changes>The Charges remain fixed for the first year; afterwards an increase of up to {rise} a year may
  be agreed.</>
* <price_changes>The rates follow the published index of producer prices, upwards and downwards, and move by at
  most {rise} between one anniversary and the next.</>
! discretion: <price_changes>{Ss} may revise the Charges at its sole discretion by publishing a new price
  list.</> The new list applies from the following month.

== payment | Payment; Payment Terms; Invoicing and Payment; Invoices; When Invoices Fall Due
* {Ss} invoices at the end of each month. <payment_terms>{Cc} shall pay each undisputed invoice within {pay} of
  receiving it.</> Late sums bear interest at 4% a year.
* <payment_terms>Payment is due {pay} after receipt of a proper invoice that quotes the Order number.</> // If
  {C} disputes part of an invoice, it pays the rest and says why.
* An invoice may be issued once the performance is complete. <payment_terms>{Cc} pays by bank transfer no later
  than {pay} from the date on which the invoice arrives.</>
* <payment_terms>The period for payment is {pay} and starts when {C} has received both the performance and a
  correct invoice.</> {Cc} may set off claims that are undisputed.
* <payment_terms>Invoices fall due {pay} after they have been received by the accounts department of {C}.</> //
  A discount for early payment is not agreed. An invoice without an Order number is returned unpaid.
* <payment_terms>{Ss} grants {C} a period of {pay} from receipt of the invoice in which to pay.</> Payment is no
  acceptance of the performance.
! typo: {Ss} invoices on delivery. <payment_terms>Every invoice shall be paid within forty-five (54) days of its
  receipt.</> Interest on late payment runs at the statutory rate.

== mincommit | Volumes; Quantities and Forecasts; No Commitment; Purchase Volumes
* <minimum_commitment>{Cc} guarantees no volume of Orders, and forecasts are for planning only.</>
* <minimum_commitment>{Cc} is not obliged to order any quantity under {A}.</>
* <minimum_commitment>No minimum volume is agreed; figures given in the tender are estimates.</>
* <minimum_commitment>{Aa} is not a commitment to buy.</> {Cc} shares its forecast twice a year.
! commit: <minimum_commitment>In every contract year {C} shall order goods or services worth at least
  {commit}.</> Where it orders less, it pays the difference in January of the following year.

== exclusivity | Other Sources; Freedom to Buy Elsewhere; Exclusivity; Relationship
* <exclusivity>{Aa} is non-exclusive.</> {Cc} may buy like goods and services from others.
* <exclusivity>{Ss} is not an exclusive source, and {C} may at all times turn to others.</>
* <exclusivity>The appointment of {S} is not exclusive.</>
* <exclusivity>{Ss} enjoys no exclusivity under {A}.</> The parties are independent businesses, and neither may
  bind the other.
! bound: <exclusivity>For as long as {A} runs, {C} and its Group shall obtain their whole need of {subject} from
  {S} and from nobody else.</>

== ld | Delay; Late Delivery; Liquidated Damages; Damages for Delay
* <liquidated_damages>For each full week of delay {S} shall pay liquidated damages of 0.5% of the price of the
  late goods, up to 5% of that price.</> Further claims remain open, less what was paid.
* <liquidated_damages>If {S} misses an agreed date, it owes {C} 1% of the value of the late part per week begun,
  limited to 10% in all.</> The parties regard this as a fair estimate of the loss.
* <liquidated_damages>A fixed sum of two percent of the Order price is due for every week by which delivery is
  late, but no more than eight percent.</> {Cc} need not prove a loss.
* {Ss} warns {C} as soon as a date is in danger. <liquidated_damages>Delay for which {S} is responsible costs
  it, as agreed damages, 0.2% of the Order value per working day, with a ceiling of 6%.</>

== warranty_goods | Warranty; Defects; Guarantee of Quality; Faulty Goods
* <warranty>{Ss} warrants that the goods are free from Defects for {warr} after delivery.</> It repairs or
  replaces faulty goods at its own cost within ten days.
* <warranty>The warranty period is {warr} and begins on delivery.</> {Cc} chooses between repair, replacement
  and a refund.
* <warranty>For {warr} from delivery {S} stands by the goods: they match their description, are new and of sound
  material.</>
* <warranty>Goods that prove faulty within {warr} of delivery are replaced free of charge.</> For replaced goods
  the period starts again.
== warranty_software | Warranty; Product Warranty; Defects; Quality of the Software
* <warranty>{Ss} warrants for {warr} from acceptance that the product works as its documentation says.</> Faults
  are removed free of charge.
* <warranty>During a warranty period of {warr} from first use, {S} corrects every Defect of the product at its
  own expense.</> A workaround is enough for a short time only.
* <warranty>The product will perform materially as described for no less than {warr} after it has been made
  available.</> {Ss} also warrants that it contains no harmful code.
* <warranty>{Ss} is answerable for Defects that show within {warr} of acceptance.</> Defects caused by changes
  that {C} made itself are excepted.

== ip | Intellectual Property; Work Results; Rights in Deliverables; Ownership of Results; Who Owns What
* <ip_ownership>All intellectual property in the work results vests in {C} as it comes into being.</> What
  either party owned before stays with that party.
* <ip_ownership>{Ss} assigns to {C} all rights in everything it creates under {A}, worldwide and for their full
  duration.</> {Ss} may go on using its general know-how.
* <ip_ownership>The deliverables and all rights in them belong to {C} from the moment of payment.</>
* <ip_ownership>Documents, drawings and data made in the course of the work become the property of {C}.</> {Ss}
  sees to it that its staff sign whatever this takes.
* // <ip_ownership>Ownership of each work result, with every right attached to it, passes to {C} upon
  delivery.</> Tools that {S} brought along are licensed to {C} as far as the use of the results requires.
! kept: <ip_ownership>{Ss} retains ownership of all work results, whatever their form, and {C} may use them for
  its internal purposes.</>
! licence: <ip_ownership>Title to the reports and models does not pass to {C}, which may consult them for its
  own business but not change or pass them on.</>

== ip_software | Intellectual Property; Rights in the Software; Ownership
* <ip_ownership>{Ss} remains the owner of the product; data that {C} puts into it belongs to {C}.</>
* <ip_ownership>No right in the product is transferred beyond the use granted here.</> Reports made with the
  product are the property of {C}.
* <ip_ownership>All rights in the product stay with {S} and its licensors.</> {Ss} defends {C} against anyone
  who claims that the product infringes a right.
* <ip_ownership>Each party keeps what it brings: {S} the product, {C} its data and everything derived from them.</>

== conf | Confidentiality; Secrecy; Non-Disclosure; Keeping Secrets
* Each party keeps the other's business information secret and uses it for {A} only. <confidentiality>This duty
  continues for {conf} after {A} has ended.</>
* <confidentiality>Confidential information received under {A} shall not be disclosed to third parties during
  the term and for {conf} afterwards.</> Information that is public, or was known before, is not confidential.
* <confidentiality>For the life of {A} and a further {conf}, neither party reveals what it has learned of the
  other's affairs.</> Disclosure to courts and authorities is permitted where the law demands it.
* <confidentiality>The parties treat each other's secrets as their own, for as long as these are not public
  knowledge.</>
* // <confidentiality>All documents marked confidential remain so until {conf} have passed since the end of
  {A}.</> At the end they are returned or destroyed.

== audit | Audit; Records and Audit; Inspection; Right to Inspect
* {Ss} keeps orderly records. <audit_rights>{Cc}, or an auditor bound to secrecy, may inspect the records that
  concern {A} once a year on ten days' notice.</>
* <audit_rights>On reasonable notice {C} may audit the performance and the books of {S} as far as they relate to
  {A}.</> If the audit shows that {C} was overcharged by more than 3%, {S} bears its cost.
* <audit_rights>{Ss} shall let {C} and its auditors examine its controls, records and premises during office hours.</>
* <audit_rights>{Cc} is entitled to have the accounts relating to the Charges checked by an independent
  accountant.</> Papers are kept for six years.
* <audit_rights>Upon request {S} opens its files on the performance to {C} and answers its questions.</> // A
  regulator that supervises {C} has the same right.

== cap_percent | Limitation of Liability; Liability; Limit of Liability; Extent of Liability
* <liability_cap>The total liability of each party under {A} in any contract year is limited to {cap} of the
  Charges payable in that year.</>
* <liability_cap>Neither party shall be liable for more than {cap} of the Charges paid or payable in the twelve
  months before the claim arose.</> Neither is liable for lost profit.
* <liability_cap>Whatever the legal ground, {S} owes damages of no more than {cap} of the yearly remuneration in
  all.</>
* Each party answers for the harm it does. <liability_cap>The sum of all claims in one year shall not exceed
  {cap} of the Charges for that year.</>
* <liability_cap>Subject to the exceptions in {A}, the aggregate liability of either party is capped at {cap} of
  the annual Charges.</>
! fees: <liability_cap>The aggregate liability of {S} shall not exceed the fees which {C} paid in the twelve
  months before the event.</>
== cap_money | Limitation of Liability; Liability; Limit of Liability; Extent of Liability
* <liability_cap>The total liability of each party under {A} is limited to {cap}.</>
* <liability_cap>In no event shall the aggregate liability of either party exceed {cap}.</> Loss of profit is
  not recoverable.
* Each party is liable for its faults. <liability_cap>All claims taken together are capped at {cap} in each
  contract year.</>
* <liability_cap>Subject to the exceptions below, {S} is liable up to an amount of {cap} per Order and contract
  year.</>
* <liability_cap>Damages, on whatever legal ground, end at {cap} for all events of one year.</>
== cap_pointer | Liability
* The limits of liability of the parties stand in the schedule at the end of this document, which is part of {A}.
== cap_schedule | Schedule: Particulars of the Contract
* Item 1. Sites: as listed in the offer. // Item 2. Contact persons: to be named within one week of signature.
  // Item 3. <liability_cap>Limit of liability of each party for all claims in one contract year: {cap} of the
  Charges for that year.</> // Item 4. Reports: monthly, by e-mail.
== cap_lookalike | Ceiling on Spending; Spending Limit
* The value of all Orders under {A} shall not exceed {ceiling} in a calendar year unless {C} has agreed
  beforehand. This is a limit on what may be ordered and no limit on what a party may have to answer for.

== uncapped | Exceptions; Unlimited Liability; What Is Not Limited; Liability That Cannot Be Limited
* <uncapped_liability>Nothing in {A} limits liability for death or personal injury, or for fraud.</>
* <uncapped_liability>The limits do not apply to intent, gross negligence, fraud, or harm to life and limb,
  including personal injury.</>
* <uncapped_liability>Liability for fraudulent conduct, for death and for bodily injury is without limit.</> The
  same is true wherever the law forbids a limit.
* <uncapped_liability>No cap or exclusion covers wilful misconduct, fraud or personal injury caused by negligence.</>
* <uncapped_liability>Unlimited remains the liability of either party for fraud and for death or personal injury
  caused by its fault.</>

== insurance | Insurance; Insurance Cover; Required Insurance
* <insurance>{Ss} maintains professional and public liability insurance of at least {ins} for each claim.</> It
  shows the certificate on request.
* <insurance>Throughout the term and for a year after, {S} shall be insured against its liability for no less
  than {ins} per event.</>
* <insurance>{Ss} carries liability cover with a reputable insurer in the amount of {ins} for any one
  occurrence.</> Gaps in the cover are reported at once.
* <insurance>A liability policy with a sum insured of {ins} per claim is a condition of {A}.</> {Ss} pays the
  premiums.

== assignment | Assignment; Transfer; No Transfer Without Consent; Assignment and Subcontracting
* <assignment>Neither party may assign or transfer {A} without the prior written consent of the other.</>
* <assignment>{Ss} shall not pass on its rights or duties unless {C} has given its consent in writing.</> Money
  claims are excepted where the law so provides.
* <assignment>A transfer of {A}, in whole or in part, needs the written approval of the other party, which shall
  not be refused without good reason.</>
* <assignment>Rights under {A} can be assigned only with the permission of the other side.</> {Cc} may, after
  telling {S}, assign {A} within its Group.
* <assignment>Assignment by {S} is valid only with the agreement in writing of {C}.</> // The use of
  subcontractors is no assignment.
! free: <assignment>{Ss} may freely assign {A}, and any claim under it, to whomever it chooses.</>

== coc | Change of Control; Sale of {S}; Change of Ownership
* <change_of_control>If control of {S} changes, {S} tells {C} without delay and {C} may terminate {A} with
  effect from a day it names.</>
* <change_of_control>{Cc} may end {A} within six months of learning that a third party has acquired more than
  half of the shares or votes in {S}.</>
* <change_of_control>A change in the ownership of {S} by which a competitor of {C} gains control entitles {C} to
  terminate at once.</>
* <change_of_control>The acquisition of {S} by another company, by merger, purchase of shares or otherwise,
  gives {C} a right of termination.</> {Ss} announces such plans as early as the law allows.

== force | Force Majeure; Events Beyond Control; Hindrance
* A party that is prevented from performing by an event beyond its control is excused while it lasts. If it
  lasts longer than sixty (60) days, either party may terminate the Orders concerned.
* War, natural disaster and acts of state free a party from its duties for their duration, provided it reports
  them promptly. Shortage of staff is no such event.
* Neither party answers for delay caused by circumstances that it could neither foresee nor avoid. After two
  months of such delay the parties look for a fair solution together.
* Events of force majeure suspend the duties they affect. The party affected does what it reasonably can to keep
  the effects small.

== notices | Notices; Communication; Formal Messages
* Notices are given in writing to the address at the head of this document and count as received on the second
  Business Day after posting.
* Formal notices go by registered letter or by e-mail with acknowledgement. Each party says at once if its
  address changes.
* A notice takes effect when it reaches the addressee. Day-to-day messages need no form.

== law | Governing Law; Applicable Law; Law and Courts; Governing Law and Jurisdiction; Disputes
* <governing_law>{Aa} is governed by the laws of {law}.</> The courts at the seat of {C} have jurisdiction.
* <governing_law>{lawadj} law applies to {A} and to all disputes that arise from it.</> The parties try
  mediation before they go to court.
* <governing_law>The validity and interpretation of {A} shall be subject to the laws of {law}, excluding its
  conflict of laws rules.</> // Disputes are settled by one arbitrator sitting in Geneva, whose award is final.
* <governing_law>This document and any duty outside contract that is connected with it are governed by {lawadj}
  law.</>
* Before going to court the parties' managers meet once. <governing_law>Whatever remains in dispute is decided
  under the laws of {law}.</>

== entire | Entire Agreement; Final Clauses; General; Form
* {Aa} holds all that was agreed on its subject. Changes need writing, and so does a waiver of this requirement.
  If a clause is void, the rest stands.
* There are no side agreements. Changes are made in writing and signed by both. A right that is not used at once
  is not given up.
* {Aa} replaces earlier drafts and talks. It is signed in two copies, one for each party. Should a clause fail,
  the parties put in its place what comes closest to its purpose.
* The written text is complete. {Ss} shall observe the code of conduct of {C}, and neither party offers or takes
  advantages that the law forbids.

== dataprot | Data Protection; Personal Data; Privacy
* Where {S} comes to handle personal data for {C}, it does so on documented instructions, keeps it apart from
  the data of others and reports a loss within one day of noticing it. Details are settled in a separate
  document if the law asks for one.
* Each party obeys the law on personal data that applies to it. Names and telephone numbers of contact persons
  may be kept for as long as the business relation lasts.
* Personal data is used for performing {A} and for nothing else. At the end it is handed over or erased, as {C}
  chooses, and {S} confirms the erasure in writing.
* The parties exchange no more personal data than the work requires. A request by a person concerned is passed
  on to the party that can answer it.
== ethics | Conduct; Fair Dealing; Compliance; Code of Conduct
* Neither party gives or takes a gift that could sway a decision. A meal at a meeting is no gift; a weekend is.
  Whoever learns of a case tells the other party's legal department.
* {Ss} pays its staff at least what the law requires, employs no children and lets workers organise. It asks the
  same of those from whom it buys.
* Each party keeps to the laws on trade controls, competition and bribery. A serious breach of this clause is a
  reason to end {A} at once.
* {Ss} has read the supplier code of {C} and will act by it. Reports under the code may be made without giving a name.
== publicity | Publicity; Use of Names; References
* Neither party uses the other's name or mark in advertising unless it was asked and said yes.
* {Ss} may name {C} in a list of references of no more than one line. Case studies, photographs and press
  releases need the approval of {C} in each case.
* Statements to the press about {A} are made by {C} alone.
== safety | Health and Safety; Safety on Site; Environment
* At the Sites, staff of {S} follow the safety rules that hang at the gate. An accident is reported on the same
  day, a near miss within the week.
* {Ss} provides safety data sheets, instructions in the local language and the protective equipment that the
  work calls for. It takes its waste away with it.
* Materials are chosen so that they can be used again or recycled. On request {S} states the weight and kind of
  all packing.
* Before work begins the parties walk through the Site together and write down the dangers they see. The list is
  reviewed once in six months.
== govern | Working Together; Contract Management; Meetings and Reports; Escalation
* Each party names a contract manager. The two meet once a quarter, look at what went well and what did not, and
  keep a list of open points with dates. A point that stays open for two meetings goes to the directors.
* {Ss} sends a short report every month: what was done, what is late and why, which risks have changed. {Cc}
  answers questions of {S} within five Business Days so that work doesn't stand still.
* Problems are first discussed by those who work together every day. If they find no answer in ten days, the
  matter goes one level up on both sides, and once more after a further ten days.
* The contact persons may settle matters of detail between them by e-mail. They can't change prices, dates or
  quantities, nor give up rights.
== subcontract | Subcontractors; Use of Third Parties; People
* {Ss} names its subcontractors before they start. {Cc} may object to one for good reason within seven days.
  {Ss} answers for what they do and fail to do.
* Key persons stay with the work for its duration, illness and resignation aside. Their successors are
  introduced at the expense of {S}.
* No part of the work that touches confidential matters is given to third parties. Carriers and cleaners are not
  third parties in this sense.
* For the duration of {A} and six months after it, neither party hires away staff of the other that worked on
  it. Answering an open advertisement is not hiring away.
"""

GROUPS = {
    "open": "definitions scope govern subcontract".split(),
    "time": "term renewal exit cause".split(),
    "money": "price price_changes payment mincommit exclusivity cap_lookalike".split(),
    "quality": "ld warranty safety".split(),
    "rights": "ip conf audit dataprot publicity".split(),
    "risk": "cap cap_pointer uncapped insurance".split(),
    "general": "assignment coc force ethics notices law entire".split(),
}
GROUP_TITLES = {
    "open": ("Subject Matter", "Basics", "Purpose"),
    "time": ("Term and Termination", "Beginning and End", "Duration"),
    "money": ("Commercial Terms", "Money", "Charges and Payment"),
    "quality": ("Quality and Delay", "Performance", "Standards"),
    "rights": ("Information and Rights", "Knowledge and Control", "Records, Results and Secrets"),
    "risk": ("Risk", "Liability and Insurance", "Responsibility"),
    "general": ("General Provisions", "Miscellaneous", "Final Provisions"),
}
ORDERS = (
    "open time money quality rights risk general".split(),
    "open money quality risk rights time general".split(),
    "open quality rights money risk time general".split(),
    "open money time risk quality rights general".split(),
    "open rights time quality risk money general".split(),
)
ALWAYS = "preamble scope cause price price_changes payment cap uncapped assignment law entire".split()
BY_KIND = {
    "goods": "ld warranty force notices safety ethics".split(),
    "services": "term exit insurance audit ip conf notices safety subcontract govern".split(),
    "software": "definitions term exit warranty ip conf audit coc dataprot govern".split(),
    "framework": "definitions term exit insurance audit coc conf mincommit force ethics govern".split(),
    "consulting": "term exit insurance ip conf notices subcontract publicity dataprot".split(),
}
LAWS = {  # as in "the laws of …", and as in "… law"
    "England and Wales": ("England and Wales", "English"),
    "Ireland": ("Ireland", "Irish"),
    "Germany": ("the Federal Republic of Germany", "German"),
    "France": ("France", "French"),
    "Netherlands": ("the Netherlands", "Dutch"),
    "New York": ("the State of New York", "New York"),
    "Delaware": ("the State of Delaware", "Delaware"),
    "Cayman Islands": ("the Cayman Islands", "Cayman Islands"),
}


@dataclass(frozen=True, kw_only=True)
class Contract:
    """One contract: who, what, how it looks, and where it departs from the policy. Durations as "45 days"."""

    file: str
    kind: str
    title: str
    subject: str
    customer: str
    supplier: str
    roles: tuple[str, str]
    day: date
    effective: date
    law: str
    currency: str
    layout: str
    word: str = "Agreement"
    width: int = 0  # columns of hard-wrapped lines, 0 for one line per paragraph
    numbers: int = 0  # how numbers are written, see `duration`
    dates: int = 0
    recital: bool = False
    signatures: bool = True
    add: tuple[str, ...] = ()
    omit: tuple[str, ...] = ()
    use: dict[str, str | int] = field(default_factory=dict)  # clause → a named variant, or one by its place
    schedule: tuple[str, ...] = ()
    breaches: tuple[str, ...] = ()
    pay: str = "30 days"
    term: str = "36 months"
    renewlen: str = "12 months"
    rnotice: str = "60 days"
    exit: str = "60 days"
    cap: int = 150  # percent, or an amount for goods and frameworks
    ins: int = 2_000_000
    rise: int = 3
    warr: str = "24 months"
    conf: str = "60 months"
    commit: int = 400_000
    ceiling: int = 900_000


ROLES = (
    ("the Buyer", "the Seller"),
    ("the Customer", "the Supplier"),
    ("the Client", "the Provider"),
    ("the Purchaser", "the Vendor"),
    ("the Client", "the Consultant"),
    ("the Authority", "the Contractor"),
)
BUYER, CUSTOMER, CLIENT, PURCHASER, ADVISED, AUTHORITY = ROLES

# fmt: off
CONTRACTS = (
    Contract(
        file="01-brass-fittings.txt", kind="goods", title="Contract for the Sale of Brass Fittings", word="Contract",
        subject="brass pipe fittings", customer="Ostervik Waterworks AG, Lindenallee 4, Harmsfeld",
        supplier="Kestrel & Pym Fittings Ltd, 12 Foundry Lane, Aldermoor", roles=BUYER, day=date(2023, 3, 14),
        effective=date(2023, 4, 1), law="Germany", currency="EUR", layout="flat", numbers=1, recital=True, cap=750_000,
        add=("exclusivity", "insurance"),
    ),
    Contract(
        file="02-office-cleaning.txt", kind="services", title="Cleaning Services Agreement",
        subject="the daily cleaning of five office buildings",
        customer="Meridale Assurance plc, 80 Castle Row, Thornbury",
        supplier="Brightstep Facility Care Ltd, Unit 3, Weirside Park, Thornbury", roles=CLIENT, day=date(2022, 9, 5),
        effective=date(2022, 10, 1), law="England and Wales", currency="GBP", layout="articles", width=84, numbers=0,
        dates=1, omit=("audit",), pay="14 days", add=("renewal", "force"), breaches=("audit-rights", "payment-days"),
    ),
    Contract(
        file="03-ledger-software.txt", kind="software", title="SOFTWARE LICENSE AND SUPPORT AGREEMENT",
        subject="the accounting product Tallyframe", customer="Corvane Logistics Inc., 400 Harbor Street, Port Ellery",
        supplier="Tallyframe Systems LLC, 19 Millrace Road, Dunmore Falls", roles=CUSTOMER, day=date(2024, 1, 22),
        effective=date(2024, 2, 1), law="New York", currency="USD", layout="roman", width=76, numbers=1, dates=2,
        recital=True, pay="30 business days",
        add=("renewal", "force", "notices", "ethics", "publicity", "subcontract", "insurance"), cap=100,
    ),
    Contract(
        file="04-packaging-framework.txt", kind="framework", title="Framework Agreement on Packaging Material",
        subject="cartons, trays and film", customer="Halden Foods B.V., Kade 21, Wesselburen",
        supplier="Torvik Packaging B.V., Industrieweg 110, Marrum", roles=("Halden", "Torvik"), day=date(2021, 11, 30),
        effective=date(2022, 1, 1), law="Netherlands", currency="EUR", layout="section", numbers=0, dates=3,
        use={"exclusivity": "bound", "mincommit": "commit"}, add=("exclusivity", "renewal"), cap=250_000,
        breaches=("liability-cap-amount", "no-exclusivity", "no-minimum-commitment"),
    ),
    Contract(
        file="05-fleet-study.txt", kind="consulting", title="Consulting Contract", word="Contract",
        subject="a study of its vehicle fleet", customer="Sant Oriel City Transit, 1 Depot Square, Sant Oriel",
        supplier="Quillfeather Advisory SARL, 7 rue du Moulin, Beaurive", roles=ADVISED, day=date(2024, 5, 17),
        effective=date(2024, 6, 3), law="France", currency="EUR", layout="runin", width=92, numbers=3, dates=4,
        term="9 months", use={"ip": "kept"}, breaches=("work-results-are-ours",), exit="30 days", ins=1_500_000,
    ),
    Contract(
        file="06-cold-chain-maintenance.pdf", kind="services", title="Maintenance Agreement for Cold Rooms",
        subject="the maintenance of cold rooms and compressors",
        customer="Fenwick Marsh Dairies Ltd, The Creamery, Fenwick",
        supplier="Polar Hollow Engineering Ltd, 2 Quarry Road, Easting", roles=CUSTOMER, day=date(2023, 6, 8),
        effective=date(2023, 7, 1), law="England and Wales", currency="GBP", layout="flat", numbers=1, dates=0,
        recital=True, pay="45 days", add=("renewal", "force", "ld"),
    ),
    Contract(
        file="07-laboratory-glass.txt", kind="goods", title="Purchase Agreement - Laboratory Glassware",
        subject="laboratory glassware", customer="Institute Varn for Soil Research, Birkenweg 9, Varn",
        supplier="Glashuette Ehrenbrunn GmbH, Ofenstrasse 2, Ehrenbrunn", roles=PURCHASER, day=date(2022, 2, 11),
        effective=date(2022, 3, 1), law="Germany", currency="EUR", layout="caps", numbers=2, dates=0, omit=("ld",),
        warr="6 months", cap=600_000, add=("conf", "term"), use={"term": "open"},
        breaches=("delay-damages", "warranty-period"),
    ),
    Contract(
        file="08-payroll-platform.pdf", kind="software", title="Subscription Agreement",
        subject="the payroll platform Wagewell", customer="Norbeck Retail Group Limited, 3 Dock Parade, Kilmarran",
        supplier="Wagewell Cloud Limited, 55 Abbey Street, Kilmarran", roles=CLIENT, day=date(2023, 10, 2),
        effective=date(2023, 11, 1), law="Ireland", currency="EUR", layout="articles", numbers=0, dates=1,
        use={"definitions": "auto", "term": 4}, rnotice="120 days",
        breaches=("no-automatic-renewal", "renewal-notice"), add=("force",), cap=125,
    ),
    Contract(
        file="09-security-guards.txt", kind="services", title="Agreement for Guarding Services",
        subject="the guarding of two depots and a car park", customer="Ashgrove Port Authority, Pier House, Ashgrove",
        supplier="Stonewatch Guarding Company Ltd, 14 Bell Street, Ashgrove", roles=AUTHORITY, day=date(2021, 4, 19),
        effective=date(2021, 5, 1), law="England and Wales", currency="GBP", layout="flat", width=80, numbers=1,
        dates=5, omit=("cap",), add=("cap_pointer", "renewal"), schedule=("cap_schedule",), pay="30 days", cap=200,
    ),
    Contract(
        file="10-timber-call-off.txt", kind="framework", title="Timber Call-Off Agreement",
        subject="sawn timber and battens", customer="Lowmere Housing Trust, 6 Orchard Rise, Lowmere",
        supplier="Greatwood Timber Holdings Ltd, Coral House, Port Amberley", roles=BUYER, day=date(2024, 7, 29),
        effective=date(2024, 8, 15), law="Cayman Islands", currency="USD", layout="bare", numbers=0, dates=0,
        cap=1_000_000, pay="60 days", breaches=("governing-law",), add=("notices", "exclusivity"),
        omit=("price_changes",),
    ),
    Contract(
        file="11-tender-advice.txt", kind="consulting", title="Letter of Engagement: Tender Advice",
        subject="advice on the tender for a tram depot", customer="Brannock Regional Council, County Hall, Brannock",
        supplier="Ilex & Rowan Partners LLP, 31 Chapel Close, Westhope", roles=ADVISED, day=date(2023, 1, 9),
        effective=date(2023, 1, 16), law="England and Wales", currency="GBP", layout="bare", width=88, numbers=2,
        dates=5, term="18 months", exit="30 days", conf="36 months", signatures=True, add=("coc",), rise=2,
    ),
    Contract(
        file="12-school-furniture.txt", kind="goods", title="SUPPLY CONTRACT FOR SCHOOL FURNITURE", word="Contract",
        subject="desks, chairs and shelves for schools", customer="Town of Eldersby, Town Hall, Eldersby",
        supplier="Joinery Works Pellworm Inc., 88 Sawmill Road, Pellworm", roles=BUYER, day=date(2022, 6, 20),
        effective=date(2022, 7, 4), law="Delaware", currency="USD", layout="caps", width=78, numbers=1, dates=2,
        omit=("cap", "uncapped"), add=("cap_lookalike", "mincommit", "term"), use={"term": "open"},
        breaches=("liability-cap", "uncapped-essentials"), pay="45 days",
    ),
    Contract(
        file="13-warehouse-robots.txt", kind="software", title="Robot Control Software Agreement",
        subject="the control software Shelfpilot for warehouse robots",
        customer="Corbel Parcel GmbH, Ringstrasse 70, Nauendorf",
        supplier="Shelfpilot Robotics GmbH, Am Anger 5, Tiefenau", roles=CUSTOMER, day=date(2024, 9, 12),
        effective=date(2024, 10, 1), law="Germany", currency="EUR", layout="section", width=90, numbers=3, dates=3,
        use={"price_changes": "discretion"}, omit=("exit",), breaches=("exit-for-convenience", "price-discretion"),
        recital=True, add=("notices",),
    ),
    Contract(
        file="14-translation.txt", kind="services", title="Translation Services",
        subject="the translation of manuals into nine languages", customer="Pumpenwerk Silz GmbH, Talweg 1, Silz",
        supplier="Babelhaus Language Services eG, Marktgasse 8, Oberlind", roles=CLIENT, day=date(2023, 8, 28),
        effective=date(2023, 9, 1), law="Germany", currency="EUR", layout="runin", numbers=0, dates=4,
        signatures=False, ins=1_000_000, pay="45 days", add=("mincommit", "exclusivity"), term="2 years",
    ),
    Contract(
        file="15-winter-salt.pdf", kind="goods", title="Winter Salt Supply Agreement", subject="de-icing salt",
        customer="Dunmorrow District, Council Yard, Dunmorrow", supplier="Saline Brothers plc, Brine Quay, Lower Wick",
        roles=AUTHORITY, day=date(2022, 8, 1), effective=date(2022, 9, 15), law="England and Wales", currency="GBP",
        layout="section", numbers=2, dates=5, cap=500_000, warr="1 years",
        add=("term", "renewal", "mincommit", "audit"), term="24 months", rise=4,
    ),
    Contract(
        file="16-network-equipment.txt", kind="framework", title="Master Purchase Agreement - Network Equipment",
        subject="switches, routers and cabling", customer="Tessaly Health Network Inc., 9 Clinic Drive, Tessaly",
        supplier="Copperline Data Supply Corp., 230 Relay Avenue, Morrow Bay", roles=PURCHASER, day=date(2023, 12, 4),
        effective=date(2024, 1, 1), law="New York", currency="USD", layout="articles", width=82, numbers=1, dates=1,
        cap=2_500_000, ins=5_000_000, pay="60 days", term="60 months", exit="90 days", recital=True,
        add=("renewal", "warranty", "notices", "safety", "subcontract", "publicity", "dataprot", "exclusivity"),
        warr="3 years", rise=5,
    ),
    Contract(
        file="17-actuarial-review.txt", kind="consulting", title="Engagement for an Actuarial Review",
        subject="a review of its pension reserves", customer="Mutual of Wenlow, 2 Guild Street, Wenlow",
        supplier="Abacus Hollis Actuaries Ltd, 40 Temple Yard, Great Sarn", roles=("Wenlow", "Abacus Hollis"),
        day=date(2024, 3, 25), effective=date(2024, 4, 2), law="Ireland", currency="EUR", layout="flat", numbers=0,
        dates=2, omit=("insurance",), use={"conf": 0}, add=("ethics", "govern"), conf="12 months", pay="90 days",
        term="6 months", word="Contract", breaches=("insurance-cover", "payment-days", "confidentiality-lasts"),
    ),
    Contract(
        file="18-data-room.txt", kind="software", title="Hosting Agreement for a Virtual Data Room",
        subject="the virtual data room Vaultry", customer="Pallister Mining NV, Zuidkade 3, Oudemeer",
        supplier="Vaultry Hosting BV, Lichtstraat 44, Oudemeer", roles=CUSTOMER, day=date(2024, 2, 6),
        effective=date(2024, 2, 19), law="Netherlands", currency="EUR", layout="roman", numbers=1, dates=0,
        use={"preamble": "undated"}, omit=("coc",), cap=50, term="12 months", add=("renewal", "insurance"),
        breaches=("agreement-dated", "liability-cap-share", "change-of-control"),
    ),
    Contract(
        file="19-canteen-catering.txt", kind="services", title="Canteen and Catering Contract", word="Contract",
        subject="the running of the staff canteen", customer="Rodeck Machine Tools SE, Werkstrasse 15, Altrode",
        supplier="Kuechenmeister Hallgarten GmbH, Gartenweg 12, Hallgarten", roles=CLIENT, day=date(2021, 7, 7),
        effective=date(2021, 9, 1), law="Germany", currency="EUR", layout="caps", width=86, numbers=2, dates=0,
        term="84 months", use={"assignment": "free", "renewal": "auto", "term": 0},
        add=("renewal", "force", "exclusivity"), rnotice="90 days",
        breaches=("term-length", "no-automatic-renewal", "assignment-consent"), recital=True,
    ),
    Contract(
        file="20-medical-gloves.txt", kind="goods", title="Sale and Purchase of Medical Gloves",
        subject="sterile and non-sterile gloves", customer="Hospitals of Saint Averil, 5 Infirmary Way, Saint Averil",
        supplier="Nimbus Protective Wear Sdn., Lot 7, Rubber Estate, Kuala Besar", roles=PURCHASER,
        day=date(2022, 4, 4), effective=date(2022, 4, 11), law="Ireland", currency="EUR", layout="flat", width=72,
        numbers=0, dates=1, rise=12, use={"payment": "typo", "price_changes": 2}, breaches=("price-increase",),
        add=("coc", "term"), cap=1_200_000, warr="18 months", term="36 months",
    ),
    Contract(
        file="21-print-framework.pdf", kind="framework", title="Framework Contract for Printed Matter",
        word="Contract", subject="brochures, forms and posters",
        customer="University of Carrowmere, Registry, Carrowmere",
        supplier="Inkwell & Daughters Printers Ltd, 17 Press Lane, Carrowmere", roles=CUSTOMER, day=date(2023, 5, 15),
        effective=date(2023, 6, 1), law="Ireland", currency="EUR", layout="runin", numbers=0, dates=2, ins=250_000,
        exit="6 months", cap=800_000, breaches=("exit-for-convenience", "insurance-cover"), add=("ld", "ip"),
    ),
    Contract(
        file="22-bridge-inspection.pdf", kind="consulting", title="Professional Services: Bridge Inspection",
        subject="the inspection of eleven road bridges", customer="Department of Roads, Province of Ardmay, Ardmay",
        supplier="Span & Truss Consulting Engineers Inc., 60 Viaduct Road, Ardmay", roles=AUTHORITY,
        day=date(2024, 4, 30), effective=date(2024, 5, 13), law="Delaware", currency="USD", layout="roman", numbers=1,
        dates=1, recital=True, use={"cap": "fees"}, add=("audit", "notices"), term="24 months", pay="30 days",
    ),
)
# fmt: on

SCAN_FILE = "23-forklift-lease-scan.pdf"
SCAN_LINES = """
HIRE CONTRACT FOR FORKLIFT TRUCKS

MADE ON 11 MAY 2022 BETWEEN LOAMFIELD MALTINGS LTD,
THE HIRER, AND HOISTWAY PLANT HIRE LTD, THE OWNER.

1. THE OWNER LETS SIX TRUCKS TO THE HIRER FOR 24 MONTHS
FROM THE DAY OF DELIVERY TO THE YARD AT LOAMFIELD.

2. THE HIRE IS PAYABLE MONTHLY WITHIN 30 DAYS OF THE
INVOICE. THE RATE DOES NOT CHANGE DURING THE HIRE.

3. THE OWNER KEEPS THE TRUCKS IN REPAIR AND REPLACES A
TRUCK THAT STANDS STILL FOR LONGER THAN TWO DAYS.

4. THE HIRER TAKES CARE OF THE TRUCKS, LETS ONLY TRAINED
DRIVERS USE THEM AND REPORTS ANY DAMAGE AT ONCE.

5. THIS CONTRACT IS SUBJECT TO ENGLISH LAW.

SIGNED FOR THE HIRER           SIGNED FOR THE OWNER
""".strip().splitlines()

FRAGMENT_FILE = "24-page-two-of-three.txt"
FRAGMENT = """
                                                                     2 / 3

and shall in that case bear the cost of the return journey as well. The
same applies where a delivery is refused at the gate because the papers
that belong to it are missing or can't be read.

7.4  Pallets and crates stay the property of whoever brought them and are
     exchanged like for like. Differences are settled each quarter.

7.5  A driver who waits for more than two hours may ask for a note of the
     time spent. The note alone gives no claim to money.

8    Complaints

8.1  Visible damage is written on the delivery note. Hidden damage is
     reported within eight days of the day on which it came to light, with
     a photograph where one can be taken.

8.2  Goods complained of are kept apart and in the condition in which they
     were found until the other side has seen them or has declined to.

8.3  Where several deliveries show the same fault, the parties look for the
     cause together and share what they learn. Each bears its own expense
     of doing so, unless the cause is found to lie with

                                                        continued on page 3
""".lstrip("\n")

# ------------------------------------------------------------------------------------------ words for values

SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()
MONTHS = "January February March April May June July August September October November December".split()
CURRENCY = {"EUR": ("euros", "€"), "USD": ("US dollars", "$"), "GBP": ("pounds sterling", "£")}


def words(number: int) -> str:
    """`number`, below ten million, in English words."""
    if number < 20:
        return SMALL[number]
    if number < 100:
        return TENS[number // 10] + (f"-{SMALL[number % 10]}" if number % 10 else "")
    for size, name in ((1_000_000, "million"), (1_000, "thousand"), (100, "hundred")):
        if number >= size:
            head, rest = divmod(number, size)
            joint = " and " if rest and rest < 100 else " "
            return f"{words(head)} {name}" + (joint + words(rest) if rest else "")
    raise AssertionError(number)


def both(number: int, style: int) -> str:
    """The number as the contract writes numbers: 0 "30", 1 "thirty (30)", 2 "thirty", 3 "30 (thirty)"."""
    return (f"{number}", f"{words(number)} ({number})", words(number), f"{number} ({words(number)})")[style]


def duration(text: str, style: int) -> str:
    """ "36 months" as the contract writes it; whole years become years in the styles with words."""
    number, unit = text.split(" ", 1)
    count = int(number)
    if unit == "months" and count % 12 == 0 and style in (1, 2):
        count, unit = count // 12, "years"
    return f"{both(count, style)} {unit[:-1] if count == 1 else unit}"


def percent(number: int, style: int) -> str:
    """The percentage as the contract writes it."""
    word = words(number)
    return (f"{number}%", f"{word} percent ({number}%)", f"{word} per cent", f"{number} percent")[style]


def money(amount: int, currency: str, style: int) -> str:
    """The amount as the contract writes it."""
    name, sign = CURRENCY[currency]
    return (
        f"{currency} {amount:,}",
        f"{words(amount)} {name} ({currency} {amount:,})",
        f"{sign}{amount:,}",
        f"{amount:,} {name}",
    )[style]


def day(when: date, style: int) -> str:
    """The date as the contract writes it."""
    month = MONTHS[when.month - 1]
    ending = {1: "st", 2: "nd", 3: "rd"}.get(when.day % 10 if when.day not in (11, 12, 13) else 0, "th")
    return (
        f"{when.day} {month} {when.year}",
        f"{month} {when.day}, {when.year}",
        f"{when.day}{ending} {month} {when.year}",
        when.isoformat(),
        f"{when.day:02}.{when.month:02}.{when.year}",
        f"the {when.day}{ending} day of {month} {when.year}",
    )[style]


def roman(number: int) -> str:
    """`number` in Roman numerals, up to 39."""
    return "X" * (number // 10) + ("", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX")[number % 10]


# --------------------------------------------------------------------------------------------- assembling


@dataclass
class Clause:
    """A clause of the bank: headings, the variants taken in turn, and those taken by name."""

    headings: list[str]
    variants: list[str] = field(default_factory=list)
    named: dict[str, str] = field(default_factory=dict)


def read_bank() -> dict[str, Clause]:
    """The clause bank, by clause id."""
    bank: dict[str, Clause] = {}
    for part in re.sub(r"\n  +", " ", BANK).split("\n== ")[1:]:
        head, *lines = part.splitlines()
        name, _, headings = head.partition(" |")
        clause = bank[name] = Clause([heading.strip() for heading in headings.split(";")])
        for line in filter(None, lines):
            if line.startswith("* "):
                clause.variants.append(line[2:])
            else:
                wanted, _, text = line.removeprefix("! ").partition(": ")
                clause.named[wanted] = text
    return bank


def turn(clause: str, number: int, count: int) -> int:
    """Which of `count` variants contract `number` takes: each once per round, every round in another order."""
    lap, place = divmod(number, count)
    return sorted(range(count), key=lambda variant: sha256(f"{clause} {lap} {variant}".encode()).digest())[place]


def bank_id(clause: str, kind: str) -> str:
    """The clause's name in the bank, which for some depends on the kind of contract."""
    if clause in ("scope", "recital"):
        return f"{clause}_{kind}"
    if clause == "cap":
        return "cap_money" if kind in ("goods", "framework") else "cap_percent"
    if clause == "warranty":
        return "warranty_software" if kind == "software" else "warranty_goods"
    if clause == "ip" and kind == "software":
        return "ip_software"
    return clause


def values(contract: Contract) -> dict[str, str]:
    """What the braces of the bank stand for in this contract."""
    style, currency = contract.numbers, contract.currency
    customer, supplier = contract.roles
    is_money_cap = bank_id("cap", contract.kind) == "cap_money"
    law, adjective = LAWS[contract.law]
    texts = {
        "C": customer,
        "Cc": customer[0].upper() + customer[1:],
        "Cn": customer.removeprefix("the "),
        "S": supplier,
        "Ss": supplier[0].upper() + supplier[1:],
        "Sn": supplier.removeprefix("the "),
        "A": f"this {contract.word}",
        "Aa": f"This {contract.word}",
        "Ag": contract.word,
        "subject": contract.subject,
        "cust_full": contract.customer,
        "supp_full": contract.supplier,
        "date": day(contract.day, contract.dates),
        "effective": day(contract.effective, contract.dates),
        "law": law,
        "lawadj": adjective,
        "cap": money(contract.cap, currency, style) if is_money_cap else percent(contract.cap, style),
        "ins": money(contract.ins, currency, style),
        "rise": percent(contract.rise, style),
        "commit": money(contract.commit, currency, style),
        "ceiling": money(contract.ceiling, currency, style),
    }
    for name in ("pay", "term", "renewlen", "rnotice", "exit", "warr", "conf"):
        texts[name] = duration(getattr(contract, name), style)
    return texts


class Writer:
    """Collects the paragraphs of one contract and the passages marked in them."""

    def __init__(self, contract: Contract, number: int, bank: dict[str, Clause]) -> None:
        self.contract, self.number, self.bank = contract, number, bank
        self.values = values(contract)
        self.paragraphs: list[str] = []
        self.gold: dict[str, str | None] = dict.fromkeys(QUESTIONS)

    def write(self) -> None:
        """The whole contract, top to bottom."""
        contract = self.contract
        self.paragraphs.append(contract.title)
        if self.number % 3 == 0:
            self.paragraphs.append(f"Reference: {contract.file[:2]}/{contract.day.year}-{contract.kind[:3].upper()}")
        self.paragraphs += self.clause("preamble")
        if contract.recital:
            letters = [f"({'ABC'[index]}) {text}" for index, text in enumerate(self.clause("recital"))]
            self.paragraphs += [("Background", "WHEREAS", "Recitals")[self.number % 3], *letters]
        number = 0
        included = ({*ALWAYS, *BY_KIND[contract.kind], *contract.add} - {*contract.omit}) | {*contract.use}
        order = ORDERS[self.number % len(ORDERS)]
        for group in order:
            clauses = [clause for clause in GROUPS[group] if clause in included]
            if self.number % 2 and group not in ("open", "risk"):
                clauses.reverse()
            if contract.layout == "articles" and clauses:
                number += 1
                self.article(number, group, clauses)
                continue
            for clause in clauses:
                number += 1
                self.numbered(number, clause)
        for clause in contract.schedule:
            self.paragraphs += [self.heading(clause).upper(), *self.clause(clause)]
        if contract.signatures:
            self.signature_block()

    def clause(self, clause: str) -> list[str]:
        """The clause's paragraphs with its values filled in and its marks still in place."""
        name = bank_id(clause, self.contract.kind)
        entry = self.bank[name]
        wanted = self.contract.use.get(clause, turn(name, self.number, len(entry.variants)))
        text = entry.named[wanted] if isinstance(wanted, str) else entry.variants[wanted]
        text = re.sub(r"\{(\w+)\}", lambda match: self.values[match[1]], text)
        return [self.unmark(part.strip()) for part in text.split(" // ") if part.strip().removeprefix("//").strip()]

    def unmark(self, text: str) -> str:
        """`text` without its marks, whose contents become the gold passages."""
        text = text.removeprefix("//").strip()
        for questions, passage in re.findall(r"<([\w,]+)>(.*?)</>", text):
            for question in questions.split(","):
                assert self.gold[question] is None, (self.contract.file, question)
                self.gold[question] = passage
        return re.sub(r"<[\w,/]+>", "", text)

    def heading(self, clause: str) -> str:
        """One of the clause's headings."""
        headings = self.bank[bank_id(clause, self.contract.kind)].headings
        heading = headings[turn(clause + " heading", self.number, len(headings))]
        return re.sub(r"\{(\w+)\}", lambda match: self.values[match[1]], heading)

    def numbered(self, number: int, clause: str) -> None:
        """One clause as an article of its own, in the contract's layout."""
        heading, parts = self.heading(clause), self.clause(clause)
        match self.contract.layout:
            case "flat":
                self.paragraphs.append(f"{number}. {heading}")
                self.paragraphs += [f"{number}.{n} {p}" for n, p in enumerate(parts, 1)] if len(parts) > 1 else parts
            case "roman":
                self.paragraphs += [f"ARTICLE {roman(number)}. {heading.upper()}", *parts]
            case "section":
                self.paragraphs.append(f"§ {number} {heading}")
                self.paragraphs += [f"({n}) {p}" for n, p in enumerate(parts, 1)] if len(parts) > 1 else parts
            case "caps":
                self.paragraphs += [heading.upper(), *parts]
            case "runin":
                self.paragraphs.append(f"{number}) {heading}. {' '.join(parts)}")
            case "bare":
                self.paragraphs.append(f"{number}. {' '.join(parts)}")

    def article(self, number: int, group: str, clauses: list[str]) -> None:
        """A group of clauses as one article with subclauses."""
        self.paragraphs.append(f"Article {number} - {GROUP_TITLES[group][self.number % 3]}")
        for index, clause in enumerate(clauses, 1):
            parts = self.clause(clause)
            self.paragraphs.append(f"{number}.{index} {parts[0]}")
            self.paragraphs += [f"({'abcdef'[n]}) {part}" for n, part in enumerate(parts[1:])]

    def signature_block(self) -> None:
        """Lines for names and signatures."""
        customer, supplier = self.contract.roles
        opening = ("In witness of this the parties have signed.", "SIGNATURES", "Read, agreed and signed:")
        self.paragraphs += [
            opening[self.number % 3],
            f"For {customer}: ______________________  Name, office:",
            f"For {supplier}: ______________________  Name, office:",
        ]


def as_text(paragraphs: list[str], width: int) -> str:
    """The contract as plain text; lines are broken at `width` columns, or not at all when it is 0."""
    if width:
        paragraphs = ["\n".join(broken(paragraph, width)) for paragraph in paragraphs]
    return "\n\n".join(paragraphs) + "\n"


def broken(paragraph: str, width: int) -> list[str]:
    """The paragraph's lines, words left whole."""
    return textwrap.wrap(paragraph, width, break_long_words=False, break_on_hyphens=False)


def as_it_stands(passage: str, text: str) -> str:
    """The passage with the line breaks it has in the file; it must occur exactly once."""
    found = re.findall(r"\s+".join(map(re.escape, passage.split())), text)
    assert len(found) == 1, (len(found), passage)
    return str(found[0])


# --------------------------------------------------------------------------------------------------- PDF

PAGE_WIDTH, PAGE_HEIGHT = 595, 842  # A4 in points


def pdf(objects: list[bytes]) -> bytes:
    """A PDF file of these objects, the first of which is the catalogue."""
    out = bytearray(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n")
    offsets = []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    out += b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start)
    return bytes(out)


def stream(data: bytes, entries: bytes = b"") -> bytes:
    """A stream object's body."""
    return b"<< /Length %d%s >>\nstream\n%s\nendstream" % (len(data), entries, data)


def pages_of_lines(paragraphs: list[str]) -> Iterator[list[str]]:
    """Pages of about fifty lines; a paragraph is never parted, nor a heading from what follows it."""
    page: list[str] = []
    kept: list[str] = []
    for paragraph in paragraphs:
        kept += [*broken(paragraph, 88), ""]
        if len(paragraph) < 60 and not paragraph.endswith((".", ":")):
            continue
        if page and len(page) + len(kept) > 51:
            yield page
            page = []
        page, kept = page + kept, []
    yield page + kept


def as_pdf(paragraphs: list[str]) -> bytes:
    """The contract as a PDF with a text layer: Helvetica, 10 points, a footer on each page."""
    pages = list(pages_of_lines(paragraphs))
    kids = b" ".join(b"%d 0 R" % (4 + 2 * index) for index in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, len(pages)),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    for index, lines in enumerate(pages):
        shown = [b"BT /F1 10 Tf 14 TL 62 780 Td"]
        shown += [b"(%s) Tj T*" % escaped(line) if line else b"T*" for line in lines]
        shown += [b"ET", b"BT /F1 8 Tf 270 36 Td (Page %d of %d) Tj ET" % (index + 1, len(pages))]
        objects += [
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 %d %d] /Contents %d 0 R "
            b"/Resources << /Font << /F1 3 0 R >> >> >>" % (PAGE_WIDTH, PAGE_HEIGHT, 5 + 2 * index),
            stream(b"\n".join(shown)),
        ]
    return pdf(objects)


def escaped(line: str) -> bytes:
    """The line as the inside of a PDF string."""
    return re.sub(rb"([\\()])", rb"\\\1", line.encode("cp1252"))


# Letters for the scan, three dots wide and five high: one octal digit per row.
GLYPHS = dict(
    glyph.split("=")
    for glyph in """
    A=25755 B=65656 C=34443 D=65556 E=74647 F=74644 G=34553 H=55755 I=72227 J=11152 K=55655 L=44447 M=57755
    N=65555 O=25552 P=65644 Q=25563 R=65655 S=34216 T=72222 U=55557 V=55552 W=55775 X=55255 Y=55222 Z=71247
    0=75557 1=26227 2=61247 3=61616 4=55711 5=74616 6=34757 7=71222 8=75757 9=75716 .=00002 ,=00024
    """.split()
)


def as_scan(lines: list[str]) -> bytes:
    """A page that is one picture, like a scan: the letters are dots, there is no text to take out."""
    width, height, dot = 848, 1200, 3
    rows = [bytearray(width // 8) for _ in range(height)]

    def ink(x: int, y: int) -> None:
        rows[y][x // 8] |= 0x80 >> (x % 8)

    for line_number, line in enumerate(lines):
        for column, letter in enumerate(line):
            left = 70 + 12 * column
            top = 90 + 34 * line_number + left // 160  # the sheet lay slightly askew
            for y, digit in enumerate(GLYPHS.get(letter, "00000")):
                for x in range(3):
                    if int(digit) & 4 >> x:
                        for spot in range(dot * (dot + 1)):
                            ink(left + dot * x + spot % dot, top + (dot + 1) * y + spot // dot)
    for speck in range(400):
        digest = sha256(b"dust %d" % speck).digest()
        ink(int.from_bytes(digest[:4], "big") % width, int.from_bytes(digest[4:8], "big") % height)
    picture = b"".join(run_lengths(bytes(row)) for row in rows) + b"\x80"
    return pdf(
        [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 %d %d] /Contents 4 0 R "
            b"/Resources << /XObject << /Im1 5 0 R >> >> >>" % (PAGE_WIDTH, PAGE_HEIGHT),
            stream(b"q %d 0 0 %d 0 0 cm /Im1 Do Q" % (PAGE_WIDTH, PAGE_HEIGHT)),
            stream(
                picture,
                b" /Type /XObject /Subtype /Image /Width %d /Height %d /BitsPerComponent 1 /ColorSpace /DeviceGray "
                b"/Decode [1 0] /Filter /RunLengthDecode" % (width, height),
            ),
        ]
    )


def run_lengths(data: bytes) -> bytes:
    """`data` in PDF's RunLengthDecode format, runs only, which is good enough for a white page."""
    return b"".join(
        bytes((257 - len(run[0]), run[0][0])) if len(run[0]) > 1 else bytes((0, run[0][0]))
        for run in ((match[0],) for match in re.finditer(rb"(?s)(.)\1{0,127}", data))
    )


# -------------------------------------------------------------------------------------------------- main


def make(folder: Path) -> None:
    """Writes `contracts/` and `gold.json` into `folder`."""
    contracts = folder / "contracts"
    contracts.mkdir(parents=True, exist_ok=True)
    bank = read_bank()
    gold: dict[str, object] = {}
    for number, contract in enumerate(CONTRACTS):
        writer = Writer(contract, number, bank)
        writer.write()
        facts = writer.gold
        if contract.file.endswith(".pdf"):
            (contracts / contract.file).write_bytes(as_pdf(writer.paragraphs))
        else:
            text = as_text(writer.paragraphs, contract.width)
            facts = {question: passage and as_it_stands(passage, text) for question, passage in facts.items()}
            (contracts / contract.file).write_bytes(text.encode())
        gold[contract.file] = {
            "quarantine": False,
            "kind": contract.kind,
            "facts": facts,
            "breaches": list(contract.breaches),
        }
    (contracts / SCAN_FILE).write_bytes(as_scan(SCAN_LINES))
    (contracts / FRAGMENT_FILE).write_bytes(FRAGMENT.encode())
    for file in (SCAN_FILE, FRAGMENT_FILE):
        gold[file] = {"quarantine": True, "kind": None, "facts": dict.fromkeys(QUESTIONS), "breaches": []}
    (folder / "gold.json").write_bytes((json.dumps(gold, indent=2, ensure_ascii=False) + "\n").encode())


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
