//! Runs the fuzz targets on mutations of valid inputs from fixed seeds, for machines without
//! cargo-fuzz.
//!
//! `TIDINGS_FUZZ_INPUTS` sets the number of inputs per target. A failure names the target and the
//! input.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Number of inputs per target. They take a few seconds in a debug build.
const INPUTS: u64 = 20_000;

/// Boundary values of lengths and counts.
const EDGES: [u64; 12] = [
    0,
    1,
    3,
    4,
    0x7f,
    0xff,
    0xffff,
    0x3fff_ffff,
    0x7fff_ffff,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0xffff_ffff_ffff_ffff,
];

/// Xorshift generator (Marsaglia, "Xorshift RNGs"), so that the inputs are the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

fn mutate(random: &mut Random, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = corpus[random.below(corpus.len())].clone();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        match random.below(8) {
            0 if !bytes.is_empty() => bytes[at] = random.next() as u8,
            1 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
            2 => bytes.insert(at, random.next() as u8),
            3 => bytes.truncate(at),
            4 => {
                let end = (at + random.below(16)).min(bytes.len());
                bytes.drain(at..end);
            }
            5 => {
                let other = &corpus[random.below(corpus.len())];
                let from = random.below(other.len());
                bytes.splice(
                    at..at,
                    other[from..(from + 64).min(other.len())].iter().copied(),
                );
            }
            6 => {
                let width = [1, 2, 4, 8][random.below(4)];
                let edge = EDGES[random.below(EDGES.len())].to_be_bytes();
                let end = (at + width).min(bytes.len());
                bytes.splice(at..end, edge[8 - width..].iter().copied());
            }
            _ => {
                // Replace bytes by a number in text form.
                let edge = EDGES[random.below(EDGES.len())].to_string();
                let end = (at + random.below(4)).min(bytes.len());
                bytes.splice(at..end, edge.into_bytes());
            }
        }
    }
    bytes
}

/// Runs a target on its corpus and on mutations of it.
fn run(name: &str, corpus: &[Vec<u8>], target: fn(&[u8])) {
    let inputs = std::env::var("TIDINGS_FUZZ_INPUTS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(INPUTS);
    let mut random = Random(0x7469_6469_6e67_7300);
    let check = |bytes: &[u8]| {
        if catch_unwind(AssertUnwindSafe(|| target(bytes))).is_err() {
            panic!("{name} panics on b\"{}\"", bytes.escape_ascii());
        }
    };
    check(b"");
    corpus.iter().for_each(|input| check(input));
    (0..inputs).for_each(|_| check(&mutate(&mut random, corpus)));
}

fn framed(tag: u8, body: &[u8]) -> Vec<u8> {
    [&[tag], &(body.len() as u32 + 4).to_be_bytes()[..], body].concat()
}

/// Returns an insert with these values in binary form, as pgoutput sends it.
fn insert(cells: &[Option<&[u8]>]) -> Vec<u8> {
    let mut out = vec![b'I', 0, 0, 0, 7, b'N'];
    out.extend((cells.len() as u16).to_be_bytes());
    for cell in cells {
        match cell {
            None => out.push(b'n'),
            Some(bytes) => {
                out.push(b'b');
                out.extend((bytes.len() as u32).to_be_bytes());
                out.extend(*bytes);
            }
        }
    }
    out
}

fn row() -> [Option<&'static [u8]>; 11] {
    [
        Some(&[0, 0, 0, 0, 0, 0, 0, 9]),
        Some(&[7; 16]),
        Some(b"order"),
        Some(b"42"),
        Some(b"OrderPlaced"),
        Some(&[0, 0, 0, 1]),
        Some(b"{\"total\": 1}"),
        None,
        Some(b"\x01{\"a\":\"b\"}"),
        Some(&[0, 2, 0x9a, 0, 0, 0, 0, 0]),
        None,
    ]
}

fn relation() -> Vec<u8> {
    let mut out = b"R\0\0\0\x07tidings\0outbox\0d\0\x02".to_vec();
    for (name, oid) in [("seq", 20u32), ("payload", 114)] {
        out.push(0);
        out.extend(name.as_bytes());
        out.push(0);
        out.extend(oid.to_be_bytes());
        out.extend((-1i32).to_be_bytes());
    }
    out
}

#[test]
fn any_bytes_of_a_server_are_frames_or_an_error() {
    let begin = [&b"w"[..], &[0; 24], b"B", &[1; 20]].concat();
    let keepalive = [&b"k"[..], &[0; 16], b"\x01"].concat();
    let error = b"SERROR\0C57P01\0Mterminating connection\0\0";
    let stream = [
        framed(b'd', &begin),
        framed(b'd', &keepalive),
        framed(b'N', error),
        framed(b'E', error),
    ]
    .concat();
    let handshake = [
        framed(b'R', b"\0\0\0\x0aSCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"),
        framed(b'R', b"\0\0\0\x0br=abc,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"),
        framed(b'R', b"\0\0\0\x05salt"),
        framed(b'S', b"server_version\x0018.0\0"),
        framed(
            b'T',
            b"\0\x01a\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0",
        ),
        framed(b'D', b"\0\x02\0\0\0\x01x\xff\xff\xff\xff"),
        framed(b'W', b"\0\0\0"),
        framed(b'Z', b"I"),
    ]
    .concat();
    let with_piece = |piece: u8, bytes: &[u8]| [&[piece], bytes].concat();
    let corpus = [
        with_piece(0, &stream),
        with_piece(3, &stream),
        with_piece(255, &handshake),
        with_piece(1, b"d\0\0\0\0"),
        with_piece(9, b"d\xff\xff\xff\xffgarbage"),
        with_piece(9, b"d\x3f\xff\xff\xffgarbage"),
    ];
    run("framing", &corpus, super::framing);
}

#[test]
fn any_bytes_are_a_message_of_the_stream_or_an_error() {
    run(
        "pgoutput",
        &[
            insert(&row()),
            relation(),
            [&b"B"[..], &[1; 20]].concat(),
            [&b"C"[..], &[1; 25]].concat(),
        ],
        super::pgoutput,
    );
}

#[test]
fn any_bytes_are_rows_of_a_copy_or_an_error() {
    let mut bytes = crate::postgres::copy_header();
    bytes.extend(12i16.to_be_bytes());
    for cell in std::iter::once(Some(&[0u8, 0, 0, 0, 0, 0, 0, 5][..])).chain(row()) {
        bytes.extend(cell.map_or(-1, |cell| cell.len() as i32).to_be_bytes());
        bytes.extend(cell.unwrap_or_default());
    }
    bytes.extend((-1i16).to_be_bytes());
    run("copy", &[bytes], super::copy);
}

#[test]
fn any_bytes_are_a_record_or_malformed() {
    let binary = "ce_specversion: 1.0\nce_id: e-1\nce_type: OrderPlaced\nce_source: /shop\n\
                  ce_dataversion: 2\n\n{\"n\": 1}";
    let structured = "content-type: application/cloudevents+json\n\n\
                      {\"specversion\":\"1.0\",\"id\":\"1\",\"type\":\"T\",\"source\":\"/s\",\
                      \"data_base64\":\"AP8=\",\"x\":[1]}";
    let debezium = "id: e-2\neventType: OrderPlaced\n\n\"{\\\"n\\\":1}\"";
    let dead = "kafka_dlt-original-topic: order\ntidings_attempts: 5\n\
                tidings_replays: 4294967295\ntidings_failed_at: 2026-01-02T03:04:05Z\n\n{}";
    run(
        "record",
        &[binary, structured, debezium, dead].map(|text| text.as_bytes().to_vec()),
        super::record,
    );
}

#[cfg(feature = "subscriber")]
#[test]
fn any_bytes_are_the_metadata_of_an_offset_or_foreign() {
    let texts = [
        "",
        "tidings1.CgICAwU",
        "tidings1.CgIC____________fwE",
        "b64:AAAA",
    ];
    let corpus = texts.map(|text| [&10i64.to_be_bytes()[..], text.as_bytes()].concat());
    run("offset_metadata", &corpus, super::offset_metadata);
}

#[test]
fn any_bytes_are_a_position_or_damage() {
    let identity = r#""identity":{"system":"1","database":2,"timeline":1}"#;
    let position = |also: &str| {
        format!(
            concat!(
                r#""position":{{"seen":"10:20:12,15","also":"{also}","streamed":"{{[5,7]}}","#,
                r#""partial":{{"xid":30,"events":2,"seq":5}},"#,
                r#""window":{{"to":"40:42:41","after":7}},"log":"0/10","reach":"0/20","#,
                r#""witness":null,"released":[3],"given_up":[{{"xid":3,"seq":4}}],"forgone":0}}"#
            ),
            also = also
        )
    };
    let entry = |number: u64, chain: u64, also: &str| {
        format!(
            r#"{{"version":1,"number":{number},"chain":{chain},"epoch":3,{identity},{}}}"#,
            position(also)
        )
    };
    let chain = [
        entry(7, 0, "{[21,21]}"),
        entry(8, 1, "{[23,9223372036854775806]}"),
        entry(9, 2, "{[25,25],[27,29]}"),
    ]
    .join("\n");
    run(
        "position_journal",
        &[
            chain.into_bytes(),
            entry(1, 0, "{}").into_bytes(),
            b"{\"version\":9}".to_vec(),
        ],
        super::position_journal,
    );
}
