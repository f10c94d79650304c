<?php

declare(strict_types=1);

namespace apachews\Wire;

use apachews\Exception\WireError;

/**
 * Reads the bridge's frames on a channel: READY and SLOW.
 *
 * Sans-I/O: receive() takes bytes that are cut anywhere.
 *
 * @internal
 */
final class ChannelReader
{
    /** The longest payload: the kind, and MAX_NUMBERS numbers. */
    private const MAX_BYTES = 1 + 4 * Lane::MAX_NUMBERS;

    private string $rest = '';

    /**
     * Returns the kind and the numbers of each complete frame, in order.
     *
     * @return list<array{int, list<int>}>
     *
     * @throws WireError the frame is not READY or SLOW: the peer is not a bridge
     */
    public function receive(string $data): array
    {
        $data = $this->rest . $data;
        $frames = [];
        $position = 0;
        while (($header = Frame::decodeHeader($data, $position)) !== null) {
            [$first, $length, $start] = $header;
            // Before the frame is complete: the limit bounds $rest.
            if ($first !== (Frame::FIN | Frame::LANE) || $length > self::MAX_BYTES || $length % 4 !== 1) {
                throw new WireError("frame of $length bytes with the first byte $first on a channel");
            }
            if ($start + $length > strlen($data)) {
                break;
            }
            $kind = ord($data[$start]);
            if ($kind !== Lane::READY && $kind !== Lane::SLOW) {
                throw new WireError("frame of kind $kind on a channel");
            }
            $frames[] = [$kind, Lane::numbersOf(substr($data, $start, $length))];
            $position = $start + $length;
        }
        $this->rest = substr($data, $position);
        return $frames;
    }
}
