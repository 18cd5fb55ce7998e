//! Records whose header names can be any bytes: clients write text only.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

/// A number as records encode it: zigzag, seven bits per byte, the lowest first.
fn varint(number: usize) -> Vec<u8> {
    let mut rest = number * 2;
    let mut bytes = Vec::new();
    while rest > 0x7f {
        bytes.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    bytes.push(rest as u8);
    bytes
}

/// A batch of one record, as [KIP-98](https://cwiki.apache.org/confluence/x/Gq0FAw) defines it.
fn batch(key: &[u8], value: &[u8], headers: &[(Vec<u8>, &[u8])]) -> Vec<u8> {
    let sized = |bytes: &[u8]| [&varint(bytes.len())[..], bytes].concat();
    let mut record = [
        &[0, 0, 0][..],
        &sized(key),
        &sized(value),
        &varint(headers.len()),
    ]
    .concat();
    for (name, value) in headers {
        record.extend(sized(name));
        record.extend(sized(value));
    }
    // The present: a broker soon removes a record that is older than its topic's retention.
    let now = chrono::Utc::now().timestamp_millis().to_be_bytes();
    let mut checked = [
        &[0, 0][..],
        &[0; 4],
        &now,
        &now,
        &[0xff; 8],
        &[0xff; 2],
        &[0xff; 4],
        &[0, 0, 0, 1],
    ]
    .concat();
    checked.extend(sized(&record));
    // CRC-32C, bit by bit.
    let crc = !checked.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 {
                crc >> 1 ^ 0x82f6_3b78
            } else {
                crc >> 1
            }
        })
    });
    let length = (4 + 1 + 4 + checked.len()) as u32;
    [
        &[0; 8][..],
        &length.to_be_bytes(),
        &[0xff; 4],
        &[2],
        &crc.to_be_bytes(),
        &checked,
    ]
    .concat()
}

/// Sends a record to partition 0, by a request of the type Produce in version 3. Returns false
/// while the broker does not know the topic yet.
pub(crate) fn produce(
    brokers: &str,
    topic: &str,
    key: &[u8],
    value: &[u8],
    headers: &[(Vec<u8>, &[u8])],
) -> bool {
    let batch = batch(key, value, headers);
    let mut request = vec![
        0, 0, 0, 3, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 0, 1, 0, 0, 0x27, 0x10, 0, 0, 0, 1,
    ];
    request.extend((topic.len() as u16).to_be_bytes());
    request.extend(topic.as_bytes());
    request.extend([0, 0, 0, 1, 0, 0, 0, 0]);
    request.extend((batch.len() as u32).to_be_bytes());
    request.extend(batch);
    let mut connection = TcpStream::connect(brokers).expect("connected");
    connection
        .write_all(&(request.len() as u32).to_be_bytes())
        .expect("written");
    connection.write_all(&request).expect("written");
    let mut answer = vec![0; 4];
    connection.read_exact(&mut answer).expect("an answer");
    answer.resize(
        u32::from_be_bytes([answer[0], answer[1], answer[2], answer[3]]) as usize,
        0,
    );
    connection.read_exact(&mut answer).expect("an answer");
    // Correlation id, one topic and its name, one partition and its number, then the error code.
    let code = 4 + 4 + 2 + topic.len() + 4 + 4;
    match answer[code..code + 2] {
        [0, 0] => true,
        // Unknown, or without a leader.
        [0, 3 | 5 | 6] => false,
        _ => panic!("{answer:?}"),
    }
}
