"""Facts only, durable when a call returns. Never a private key, never a decision.

Every method of Store is a coroutine and one transaction; cancelled, it has happened whole or not at all.

    Store.open(path, clock) -> Store; close()
    begin_run(boot_id, pid, now) -> Run | None (the previous one, if it ended uncleanly); end_run(now); runs(limit); epoch() -> str
    account(authority, directory) -> AccountFact | None; record_account(authority, directory, uri, thumbprint, now)
    begin_issuance(certificate, generation, authority, identifiers, now) -> Issuance (the open one, if there is one)
    record_order_url(certificate, generation, url, now); record_answered(certificate, generation, challenge_url)
    abandon_issuance(certificate, generation, problem, now); open_issuances(); closed_issuances(certificate); orders_sent() -> int
    record_token(token, key_authorization, certificate, identifier, now); tokens() -> {token: key authorization}; drop_tokens(certificate)
    record_generation(generation); generations() -> {certificate: (Generation, ...)}; highest_number(certificate) -> int
    mark_revoked(certificate, generation, now); revoked() -> {(certificate, generation): at}
    put_renewal_info(certificate, generation, info); renewal_infos() -> {(certificate, generation): info}
    record_attempt(attempt); clear_attempt(subject); attempts() -> {subject: Attempt}
    ask_renewal(certificate, now); asked() -> {certificate: at}
    note_definitions({certificate: digest}, now) -> {certificate: changed_at}
    record_config(digest, problems, now) -> ConfigFact; config() -> ConfigFact | None
    add_consumer(name, now); consumers() -> {name: ConsumerFact}
    open_enrolment(consumer, token_hash, expires, now); enrolment(token_hash) -> EnrolmentFact | None
    redeem(token_hash, spki, now, identity: IdentityFact) -> bytes (certificate PEM; raises EnrolmentRefused)
    identity(serial) -> IdentityFact | None; identities(consumer); end_identities(consumer, now) -> serials ended
    offer(certificate, consumer, generation, now) -> revision; withdraw(certificate, consumer, now) -> revision
    offered() -> {(certificate, consumer): generation}; assignments(consumer) -> (revision, (Assignment, ...))
    record_published(certificate, consumer, generation, at); published() -> (PublishedFact, ...)
    record_report(consumer, boot_id, sequence, deployments, proofs: {certificate: [Proof]}, now, version) -> bool (False: older, ignored)
    deployments() -> {(certificate, consumer): (Deployment, ...)}; proofs() -> {(certificate, consumer): (Proof, ...)}
    heard(consumer) -> Heard | None
    add_events(events) -> last id; events(after, limit); last_events(n)
    facts() -> StoreFacts (one hop for the reconciler)
"""
